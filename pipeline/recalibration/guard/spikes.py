"""Which updates are not made: numbers that are not finite, spikes, and a loss that drifts away. Pure arithmetic."""

import math
import sys
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.recipe.recalibration import GuardConfig

_MAD_TO_DEVIATION = 1.4826
"""Median absolute deviation of a normal distribution times this is its standard deviation."""

# In a calm stretch (large batches, small learning rate) the deviations themselves come near to zero, and every wobble
# would be many of them. Below these differences nothing is trouble, however calm it was: with the default limits a loss
# must be 0.16 nats above the median, a gradient norm exp(1.2) = 3.3 times it.
_LEAST_LOSS_DEVIATION = 0.02
"""Nats."""
_LEAST_NORM_DEVIATION = 0.1
"""Of natural logarithms."""


class Guard:
    """Judges every update by the loss and the gradient norm of its batch, against those of the last accepted ones.

    Its state is a function of the judged numbers alone: fed the same, or their lines of metrics.jsonl by `replay`, two
    guards decide alike to the last bit. So all ranks do, as long as they are given the same numbers.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skips_in_a_row = 0
        self._losses = _Window(config.window, _LEAST_LOSS_DEVIATION)
        self._norms = _Window(config.window, _LEAST_NORM_DEVIATION)
        self._accepted = 0
        self._lowest_median = math.inf

    @property
    def must_go_back(self) -> bool:
        """Whether skipping has not helped."""
        return self.config.enabled and self.skips_in_a_row >= self.config.patience

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Why an update must not be made, for people; None if it may. Changes nothing.

        loss: of the global batch, nats. grad_norm: of the whole model, before clipping.
        """
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return f"{name} is not finite ({value})"
        if not self.config.enabled or self._accepted < self.config.warmup:
            return None
        return self._loss_spike(loss) or self._norm_spike(grad_norm) or self._drift(loss)

    def observe(self, loss: float, grad_norm: float, skipped: bool) -> None:
        """Takes note of a step; `skipped`: its update was not made, as it never is where a number is not finite."""
        if skipped or not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.skips_in_a_row += 1
            return
        self.skips_in_a_row = 0
        self._accepted += 1
        self._losses.push(loss)
        self._norms.push(_log(grad_norm))
        if self._accepted >= self.config.warmup:
            self._lowest_median = min(self._lowest_median, self._losses.median)

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Observes steps again from their lines of metrics.jsonl.

        Each has loss and grad_norm, null where they were not finite, and `skipped` where the update was not made; lines
        without a loss (of a validation) are passed over.
        """
        for line in lines:
            if "loss" in line:
                loss, grad_norm = (math.nan if line[name] is None else line[name] for name in ("loss", "grad_norm"))
                self.observe(loss, grad_norm, bool(line.get("skipped")))

    def _loss_spike(self, loss: float) -> str | None:
        distance = self._losses.deviations_above(loss)
        if distance <= self.config.loss_z:
            return None
        return f"loss {loss:.4g} is {_above(distance)} {self._losses.median:.4g} of {len(self._losses)} steps"

    def _norm_spike(self, grad_norm: float) -> str | None:
        distance = self._norms.deviations_above(_log(grad_norm))
        if distance <= self.config.grad_norm_z:
            return None
        median = math.exp(self._norms.median)
        return f"gradient norm {grad_norm:.4g} is {_above(distance)} {median:.4g} of {len(self._norms)} steps"

    def _drift(self, loss: float) -> str | None:
        """A rise so slow that the median follows it."""
        if loss <= self._lowest_median + self.config.loss_rise:
            return None
        lowest = f"the lowest median so far, {self._lowest_median:.4g}"
        return f"loss {loss:.4g} is more than {self.config.loss_rise:g} above {lowest}"


def _above(distance: float) -> str:
    return f"{distance:.1f} robust standard deviations above the median"


def _log(grad_norm: float) -> float:
    """A norm of zero (nothing to learn in a batch) is small, not an error."""
    return math.log(max(grad_norm, sys.float_info.min))


class _Window:
    """The last `size` values, in the order of their coming and in that of their size."""

    def __init__(self, size: int, least_deviation: float) -> None:
        self._size, self._least_deviation = size, least_deviation
        self._coming: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def push(self, value: float) -> None:
        if len(self._coming) == self._size:
            del self._sorted[bisect_left(self._sorted, self._coming.popleft())]
        self._coming.append(value)
        insort(self._sorted, value)

    @property
    def median(self) -> float:
        return _median(self._sorted)

    def deviations_above(self, value: float) -> float:
        """The robust z-score: how many standard deviations, as the median absolute deviation gives them, above."""
        median = self.median
        # From a sorted list these are one falling and one rising run, which sorted() merges without comparing all.
        mad = _median(sorted([abs(other - median) for other in self._sorted]))
        return (value - median) / max(_MAD_TO_DEVIATION * mad, self._least_deviation)


def _median(values: list[float]) -> float:
    """Of sorted values."""
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
