"""Which rows a data-parallel rank trains on at which step."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


def micro_batches(rows: Dataset, number: int, batch: int, micro_batch: int, device: torch.device) -> Iterator[Batch]:
    """This data-parallel rank's share of global batch `number` (1, 2, ...), one micro batch at a time.

    Global batch n is rows (n-1) * batch .. n * batch - 1 whatever the number of ranks.
    """
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    share = batch // ranks
    first = (number - 1) * batch + rank * share
    for start in range(first, first + share, micro_batch):
        yield read_rows(rows, range(start, start + micro_batch), device)


def read_rows(rows: Dataset, indices: range | list[int], device: torch.device) -> Batch:
    """Rows as one batch on the device."""
    items = [rows[index] for index in indices]
    stacked = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    if device.type == "cuda":  # from pinned memory the copy goes on beside what the device computes
        return Batch(**{key: value.pin_memory().to(device, non_blocking=True) for key, value in stacked.items()})
    return Batch(**stacked)


class ReadAhead:
    """Reads the batch of the next step in a thread while this one is computed."""

    def __init__(self, read: Callable[[int], list[Batch]], first: int, last: int) -> None:
        """`read` gives the micro batches of a step; steps `first` .. `last` will be asked for, in order."""
        self._read, self._last = read, last
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._next: Future[list[Batch]] = self._pool.submit(read, first)
        self.waited = 0.0
        """How long the last `take` had to wait, seconds."""

    def take(self, step: int) -> list[Batch]:
        """The micro batches of a step.

        Raises: whatever reading them raised.
        """
        began = time.perf_counter()
        batches = self._next.result()
        self.waited = time.perf_counter() - began
        if step < self._last:
            self._next = self._pool.submit(self._read, step + 1)
        return batches
