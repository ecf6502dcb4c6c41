"""Validation in the run: held-out loss at the training length and at multiples of it, by position, and recall."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import torch
from megatron.core import parallel_state
from torch import Tensor

from data_prep.artifact import ShardSet
from data_prep.rows import RowDataset, build_rows
from model_surgery.megatron.model import token_losses
from pipeline.recalibration.batches import read_rows
from pipeline.recalibration.metrics.validation_result import ValidationResult
from pipeline.recalibration.validation.recall import recall_rows, recalled
from pipeline.recipe.recalibration import ResolvedTraining

_PARTS = 16
_LOGIT_BYTES = 2 << 30
_BYTES_OF_A_LOGIT = 8
"""In the precision of the model, and once more in fp32."""


@dataclass(frozen=True)
class Length:
    """What is measured at one multiple of the training length."""

    multiple: int
    rows: RowDataset
    recall_rows: Tensor | None
    """Rows for recall (see `recall_rows`), or None."""
    micro_batch: int


class Validation:
    """The held-out rows of a training. All ranks make every call."""

    def __init__(self, lengths: tuple[Length, ...], device: torch.device) -> None:
        self.lengths, self._device = lengths, device

    @classmethod
    def build(
        cls, config: ResolvedTraining, shards: ShardSet, folder: Path, cache_dir: Path, device: torch.device
    ) -> "Validation":
        """Rows of every length; the shards lie in `folder`, and `validation_check.check_validation` must have passed.

        At the training length they are the `validation` rows of `build_rows`. Of longer ones there are as many as make
        about as many tokens.
        """
        lengths = []
        for multiple in config.validation_lengths:
            rows = held_out_rows(config, shards, folder, multiple, cache_dir)
            repeated = None
            if config.recall_samples:
                repeated = recall_rows(rows, samples=config.recall_samples, eos_id=shards.eos_id, seed=config.seed)
            lengths.append(Length(multiple, rows, repeated, rows_at_once(config, shards, multiple)))
        return cls(tuple(lengths), device)

    def measure(
        self, engine: deepspeed.DeepSpeedEngine, progress: Callable[[], None] = lambda: None
    ) -> ValidationResult:
        """Every loss and recall; every data-parallel rank takes its share of the rows. `progress` is told every pass.

        The loss is the one that is trained: where documents are masked, they are masked here too and only counted
        tokens weigh. Recall is always asked over the whole row.
        """
        engine.eval()
        with torch.no_grad():
            sums = {length.multiple: self._sums_by_position(engine, length, progress) for length in self.lengths}
            recalls = {
                length.multiple: self._recall(engine, length.recall_rows, length.micro_batch, progress)
                for length in self.lengths
                if length.recall_rows is not None
            }
        engine.train()
        longest = max(self.lengths, key=lambda length: length.multiple)
        by_position = sums[longest.multiple]
        return ValidationResult(
            losses={multiple: (total[0].sum() / total[1].sum()).item() for multiple, total in sums.items()},
            recalls=recalls,
            longest=len(longest.rows[0]["tokens"]),
            by_position=(by_position[0] / by_position[1]).tolist(),
        )

    def _sums_by_position(
        self, engine: deepspeed.DeepSpeedEngine, length: Length, progress: Callable[[], None]
    ) -> Tensor:
        """Summed losses of counted tokens, and their number, in equal parts of the row: float64 [2, 16]."""
        total = torch.zeros(2, _PARTS, dtype=torch.float64, device=self._device)
        for indices in passes(len(length.rows), length.micro_batch):
            progress()
            batch = read_rows(length.rows, indices or [0], self._device)
            losses = token_losses(engine, batch.tokens, batch.labels, batch.documents)
            if indices:
                total += position_sums(losses, batch.counted)
        torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return total

    def _recall(
        self, engine: deepspeed.DeepSpeedEngine, repeated: Tensor, micro_batch: int, progress: Callable[[], None]
    ) -> float:
        """The share that is recalled of the sequences in `repeated`, as `recall_rows` makes them."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for indices in passes(len(repeated), micro_batch):
            progress()
            rows = repeated[indices or [0]].to(self._device)
            shares = recalled(token_losses(engine, rows[:, :-1].contiguous(), rows[:, 1:].contiguous()))
            if indices:
                total += shares.sum()
        torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return total.item() / len(repeated)


def rows_at_once(config: ResolvedTraining, shards: ShardSet, multiple: int) -> int:
    """Rows of so many times the training length that go through the model together: a micro batch, or fewer.

    Training takes its loss in parts, validation from the logits of all tokens: they are what its memory is bounded by.
    """
    words = shards.vocab_size // parallel_state.get_tensor_model_parallel_world_size()
    fitting = _LOGIT_BYTES // (multiple * shards.row_length * words * _BYTES_OF_A_LOGIT)
    return max(1, min(config.micro_batch // multiple, fitting))


def passes(count: int, micro_batch: int) -> Iterator[list[int]]:
    """Which of `count` rows this data-parallel rank takes, one forward pass at a time.

    All ranks make the same number of passes, since ZeRO-3 gathers weights in each: one without rows is an empty list.
    """
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    for start in range(0, count, micro_batch * ranks):
        first = start + rank * micro_batch
        yield list(range(first, min(first + micro_batch, count)))


def position_sums(losses: Tensor, counted: Tensor | None) -> Tensor:
    """Counted losses and their number, summed over rows and over 16 equal parts of the row: float64 [2, 16].

    `losses`: [rows, length]; `counted`: bool [rows, length], or None where every token counts.
    """
    counted = torch.ones_like(losses, dtype=torch.bool) if counted is None else counted
    sums = torch.stack([(losses.double() * counted).sum(0), counted.double().sum(0)])
    return torch.stack([part.sum(1) for part in sums.tensor_split(_PARTS, dim=1)], dim=1)


def held_out_rows(
    config: ResolvedTraining, shards: ShardSet, folder: Path, multiple: int, cache_dir: Path
) -> RowDataset:
    """Held-out rows of `multiple` times the training length.

    Raises: DiskError if the disk of `cache_dir` is full.
    """
    length = multiple * shards.row_length
    # With the held-out documents in the training ones' place no index over those is built for each length.
    held_out = tuple(
        source.model_copy(update={"train": source.validation})
        for source in shards.sources
        if source.validation.tokens > length
    )
    rows = build_rows(
        shards.model_copy(update={"sources": held_out}),
        folder,
        train_rows=1,
        validation_rows=max(1, config.validation_rows // multiple),
        row_length=length,
        mask_documents=config.mask_documents,
        cache_dir=cache_dir,
    )
    assert rows.validation is not None  # rows were asked for
    return rows.validation
