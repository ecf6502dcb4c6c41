"""Training rows out of shards, by Megatron-core's GPTDataset and its blended builder."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import distributed
from torch.utils.data import Dataset

from data_prep.artifact import ShardSet, SourceShards, Split
from data_prep.errors import DataError
from data_prep.joined_shards import JoinedConfig, JoinedGPTDataset, JoinedShards, OpenShards
from data_prep.megatron import BlendedMegatronDatasetBuilder
from foundation.files import explained_writes, publish_folder, remove, temporary_path

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Rows as Megatron's data sets give them: "tokens" and "labels", int64 [row_length]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]: ...


class RowDataset(Dataset):
    """A fixed number of rows; row i is {"tokens": int64 [row_length], "labels": int64 [row_length]}.

    Labels are the tokens shifted by one: labels[j] is the token after tokens[j] in the joined documents.

    With the id of the EOS as `eos_id`, a row also has "documents": int32 [row_length], the number of each token's
    document in the row, counted from 0, and "counted": bool [row_length], whether the label is of the same document as
    its token. An EOS belongs to the document that it ends, so only the labels of EOS tokens are not counted.
    """

    def __init__(self, source: Source, rows: int, eos_id: int | None = None) -> None:
        self._source = source
        self._rows = rows
        self._eos_id = eos_id

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        row = self._source[index]
        item = {"tokens": row["tokens"], "labels": row["labels"]}
        return item if self._eos_id is None else item | borders(row["tokens"], self._eos_id)


def borders(tokens: torch.Tensor, eos_id: int) -> dict[str, torch.Tensor]:
    """Where documents begin in a row of `tokens`, int64 [row_length]: "documents" and "counted" of RowDataset.

    Every document of a shard ends with the EOS and holds it nowhere else.
    """
    ends = tokens == eos_id
    return {"documents": (ends.cumsum(0) - ends.long()).int(), "counted": ~ends}


@dataclass(frozen=True)
class Rows:
    """Rows to train on and held-out rows; validation is None where nothing was held out."""

    train: RowDataset
    validation: RowDataset | None


@dataclass(frozen=True)
class _ShardTokenizer:
    """All that GPTDataset asks of a tokenizer. It has no `pad`, so that no token id is ever taken for padding."""

    vocab_size: int
    eod: int
    digest: str

    @property
    def unique_identifiers(self) -> dict[str, str]:
        return {"tokenizer": self.digest}


def build_rows(
    shards: ShardSet,
    folder: Path,
    *,
    train_rows: int,
    validation_rows: int | None,
    row_length: int | None = None,
    mask_documents: bool = False,
    cache_dir: Path,
) -> Rows:
    """Documents in shuffled order, joined and cut into full rows, in shuffled order; no resets.

    With `mask_documents` every row says where its documents begin (see RowDataset); tokens, labels and order are those
    without it.

    Training rows are drawn from the sources by weight; a source that is too small is repeated. Validation rows are one
    epoch of the held-out documents, or the first `validation_rows` of it (fewer if there are not as many).

    Order: row i depends on the shards, their seed, row_length and i; on `train_rows` only through the number of epochs
    that a source needs for it, since Megatron shuffles all epochs of a source together (but for a last one of which
    less than 80% is used). So a run resumes exactly with the same `train_rows`; a longer run begins with the same rows
    only if no source is repeated in either. The order does not depend on the number of processes.

    Call it on every rank of an initialised process group, or in a process without one. Rank 0 builds the index files
    in `cache_dir`, which all ranks share; they appear there as a whole, under a name made of the shards' digests.

    Raises: DataError if a source has too few tokens for one row; DiskError if the disk of `cache_dir` is full.
    """
    row_length = shards.row_length if row_length is None else row_length
    train = [source for source in shards.sources if source.train.documents]
    validation = [source.validation for source in shards.sources if source.validation.tokens > row_length]
    _refuse(train, train_rows, validation_rows, row_length)
    weights = [source.weight for source in train]
    request = _Request(
        shards, Path(folder), [source.train for source in train], weights, validation, train_rows, row_length
    )
    with _process_group(), _cache(Path(cache_dir) / request.key) as cache:
        built_train, built_validation = request.build(cache)
    eos_id = shards.eos_id if mask_documents else None
    held_out = None
    if built_validation is not None and (count := _limited(len(built_validation), validation_rows)):
        held_out = RowDataset(built_validation, count, eos_id)
    held = len(held_out) if held_out else 0
    logger.info("%d training and %d validation rows of %d tokens", train_rows, held, row_length)
    return Rows(train=RowDataset(built_train, train_rows, eos_id), validation=held_out)


def _limited(count: int, most: int | None) -> int:
    return count if most is None else min(count, most)


def _refuse(train: list[SourceShards], train_rows: int, validation_rows: int | None, row_length: int) -> None:
    if row_length < 2:
        raise DataError(f"row_length {row_length}: a row needs at least 2 tokens")
    if train_rows < 1:
        raise DataError(f"train_rows {train_rows}: at least one row is needed")
    if validation_rows is not None and validation_rows < 0:
        raise DataError(f"validation_rows {validation_rows}: it cannot be negative")
    if not train:
        raise DataError("no source has a document to train on; lower validation_fraction or add documents")
    for source in train:
        if source.train.tokens <= row_length:
            raise DataError(
                f"source {source.name}: {source.train.tokens:,} tokens to train on, a row of {row_length:,} needs "
                f"{row_length + 1:,}; lower the row length or add documents"
            )


@dataclass(frozen=True)
class _Request:
    """What is asked of Megatron's builder."""

    shards: ShardSet
    folder: Path
    train: list[Split]
    weights: list[float]
    validation: list[Split]
    train_rows: int
    row_length: int

    @property
    def key(self) -> str:
        """Names the index files of this request. Nothing in it knows where the shards lie."""
        digests = [split.digest for split in (*self.train, *self.validation)]
        facts = (digests, self.weights, self.shards.seed, self.train_rows, self.row_length)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def build(self, cache: Path) -> tuple[Source, Source | None]:
        train = ([split.digest for split in self.train], self.weights)
        validation = ([split.digest for split in self.validation], None) if self.validation else None
        opened = OpenShards()
        config = JoinedConfig(
            splits={
                split.digest: JoinedShards(self.folder, split.shards, self.shards.dtype, opened)
                for split in (*self.train, *self.validation)
            },
            random_seed=self.shards.seed,
            sequence_length=self.row_length,
            blend_per_split=[train, validation, None],
            path_to_cache=str(cache),
            # Rounding may draw a few rows more from a source than its weight says: 2 per source cover all of them.
            mid_level_dataset_surplus=max(0.005, 2 * len(self.train) / self.train_rows),
            tokenizer=_ShardTokenizer(self.shards.vocab_size, self.shards.eos_id, self.shards.tokenizer_digest),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        sizes = [self.train_rows, None, None]
        built = BlendedMegatronDatasetBuilder(JoinedGPTDataset, sizes, lambda: True, config).build()
        return built[0], built[1]


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """Megatron's blended data set asks for its rank, so a process without a group gets one of its own for a moment."""
    if distributed.is_initialized():
        yield
        return
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _cache(path: Path) -> Iterator[Path]:
    """The folder of a request's index files: `path` if it is complete, else a temporary one that becomes `path`.

    Megatron writes index files in place and takes any that exist for complete, so a killed run must not leave them.
    """
    is_first = distributed.get_rank() == 0
    # Rank 0 chooses for all: another machine may not see yet what this one wrote, and the ranks must do the same.
    names = [_complete_or_temporary(path).name if is_first else ""]
    distributed.broadcast_object_list(names)
    folder = path.with_name(names[0])
    if folder == path:
        yield path
        return
    try:
        with explained_writes(path), _unwrapped():
            yield folder
    except BaseException:
        if is_first:
            remove(folder)
        raise
    distributed.barrier()
    if is_first:
        publish_folder(folder, path)


def _complete_or_temporary(path: Path) -> Path:
    """`path` if it is there, else a new temporary folder beside it; what killed runs left of the same request goes."""
    if path.is_dir():
        return path
    for leftover in path.parent.glob(f".{path.name}.*"):  # one run builds in a cache at a time
        remove(leftover)
    temporary = temporary_path(path)
    with explained_writes(path):
        temporary.mkdir(parents=True)
    return temporary


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Megatron's builder wraps an OSError from its cache in a bare Exception; take it out again."""
    try:
        yield
    except Exception as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise
