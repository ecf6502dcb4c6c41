"""Which rows a data-parallel rank trains on at which step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Batch:
    """Rows on the device, each tensor [micro batch, length]; the last two are None where documents are not masked."""

    tokens: Tensor
    labels: Tensor
    documents: Tensor | None = None
    """Number of each token's document in its row."""
    counted: Tensor | None = None
    """Whether the loss on a label counts: the label is of the same document as its token."""


def micro_batches(rows: Dataset, step: int, batch: int, micro_batch: int, device: torch.device) -> Iterator[Batch]:
    """This data-parallel rank's share of global batch `step` (1, 2, ...), one micro batch at a time.

    Global batch n is rows (n-1) * batch .. n * batch - 1 whatever the number of ranks, so that the data position is a
    function of the step alone.
    """
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    share = batch // ranks
    first = (step - 1) * batch + rank * share
    for start in range(first, first + share, micro_batch):
        yield read_rows(rows, range(start, start + micro_batch), device)


def read_rows(rows: Dataset, indices: range | list[int], device: torch.device) -> Batch:
    """Rows as one batch on the device."""
    items = [rows[index] for index in indices]
    return Batch(**{key: torch.stack([item[key] for item in items]).to(device) for key in items[0]})
