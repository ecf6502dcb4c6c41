"""One training step: what is known of it so far, and its line in metrics.jsonl."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from pipeline.recalibration.exchange import Report, Reports
from pipeline.recalibration.metrics.files import Value


@dataclass
class Step:
    """Filled in as the step goes on: by the loop, and by callbacks (named in brackets) at their points."""

    number: int
    is_last: bool
    """Of the whole training."""
    lr: float
    """As applied."""
    tokens: int
    """Read by the end of this step."""
    began: float
    """By `time.perf_counter`."""
    phase: Callable[[str], AbstractContextManager[None]]
    """`with step.phase("checkpoint"):` tells all callbacks of a part of the step."""
    report: Report = field(default_factory=Report)
    """What this rank tells the others."""
    reports: Reports = field(default_factory=lambda: Reports((), 1))
    """What all ranks have told, from `before_update` on."""
    grad_norm: float = math.nan
    """Of the whole model before clipping [guard]."""
    skipped: str | None = None
    """Why the update was not made [guard]."""
    goes_back: bool = False
    """Whether skipping has not helped [guard]."""
    machines: dict[str, Value] = field(default_factory=dict)
    """Numbers that clocks and machines decide [machine metrics]."""
    layers: dict[str, Value] = field(default_factory=dict)
    """Numbers by layer, where they were due [layer metrics]."""
    validation: dict[str, float] = field(default_factory=dict)
    """Held-out loss and recall, where they were due [validation]."""
    checkpoint_pause_seconds: float | None = None
    """How long training stood still for a checkpoint, where one was due [checkpointer]."""

    @property
    def loss(self) -> float:
        """Of the global batch, nats per token, from `before_update` on."""
        return self.reports.loss

    def line(self) -> dict[str, Value]:
        """The step in metrics.jsonl: the one place where a line is put together."""
        line: dict[str, Value] = {"loss": self.loss, "lr": self.lr, "grad_norm": self.grad_norm}
        if self.skipped:
            line["skipped"] = self.skipped
        line |= {"tokens": self.tokens, **self.machines, **self.layers, **self.validation}
        if self.checkpoint_pause_seconds is not None:
            line["checkpoint_pause_seconds"] = self.checkpoint_pause_seconds
        return line
