"""Which rows a data-parallel rank trains on at which step."""

from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.utils.data import Dataset

Batch = tuple[Tensor, Tensor]
"""Input tokens and labels, both [micro batch, length]."""


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
    """Rows as tokens and labels on the device."""
    items = [rows[index] for index in indices]
    tokens, labels = (torch.stack([item[key] for item in items]) for key in ("tokens", "labels"))
    return tokens.to(device), labels.to(device)
