"""Ranks and hosts that are slower than the others, by the time that each spends on work of its own.

In synchronous training every rank's step takes the same time: the fast ones wait for the slow one in the collectives.
What differs is the time outside of them, which `OwnTime` measures.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from types import TracebackType

import torch


@dataclass(frozen=True)
class StepSpread:
    """One step's own times over the ranks."""

    slowest_rank: int
    slowest_host: str
    seconds_max: float
    seconds_median: float
    ratio: float
    """The slowest rank's time over the median; 1.0 where no rank took any."""


@dataclass(frozen=True)
class SlowestHost:
    """The host whose slowest rank took longest, on average over some steps."""

    host: str
    steps: int
    seconds: float
    """Per step."""
    ratio: float
    """Over the median of the hosts; 1.0 where there is one host, or none took any time."""

    @property
    def line(self) -> str:
        return f"slowest host over the last {self.steps:,} steps: {self.host}, {self.ratio - 1:.0%} above the median"


class OwnTime:
    """Seconds that this rank spends in `with own:` blocks, to be put around work that waits for no other host.

    Around the wait for data and the forward passes, with TP groups within hosts and ZeRO 1 or 2, this is the time of
    the rank's TP group: ranks of one group wait for each other in every layer and show the same. Under ZeRO 3 forward
    passes gather weights from all ranks: the fast ones' times hold some of their waiting, and the ratio is too small.
    Backward passes are left out: they reduce gradients over all ranks. On a GPU the time is the stream's, between two
    events; it is read where the step has to wait for the GPU anyway.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds, self._began = 0.0, 0.0

    def __enter__(self) -> None:
        self.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def begin(self) -> None:
        if self._on_gpu:
            self._spans.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._spans[-1][0].record()
        else:
            self._began = time.perf_counter()

    def end(self) -> None:
        if self._on_gpu:
            self._spans[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._began

    def take(self) -> float:
        """The seconds since the last `take`; on a GPU it waits until the last block is done there."""
        if self._spans:
            self._spans[-1][1].synchronize()
            self._seconds = sum(start.elapsed_time(end) for start, end in self._spans) / 1000
            self._spans.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def spread(seconds: Sequence[float], hosts: Sequence[str]) -> StepSpread:
    """The slowest rank of a step; `seconds` and `hosts`: [ranks]."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    middle = median(seconds)
    return StepSpread(slowest, hosts[slowest], seconds[slowest], middle, _ratio(seconds[slowest], middle))


class HostTimes:
    """Own times of the hosts over the last steps; a host is as slow as its slowest rank."""

    def __init__(self, hosts: Sequence[str], steps: int = 100) -> None:
        """`hosts`: [ranks]; `steps`: how many are looked back on."""
        self._hosts = hosts
        self._steps: deque[dict[str, float]] = deque(maxlen=steps)

    def add(self, seconds: Sequence[float]) -> None:
        """One step; `seconds`: [ranks]."""
        step: dict[str, float] = {}
        for host, taken in zip(self._hosts, seconds, strict=True):
            step[host] = max(taken, step.get(host, 0.0))
        self._steps.append(step)

    def slowest(self) -> SlowestHost:
        """Over the steps so far, of which there must be one."""
        means = {host: fmean(step[host] for step in self._steps) for host in self._steps[0]}
        slowest = max(means, key=means.__getitem__)
        return SlowestHost(slowest, len(self._steps), means[slowest], _ratio(means[slowest], median(means.values())))


def _ratio(value: float, middle: float) -> float:
    return value / middle if middle > 0 else 1.0
