"""A training process of this project that times what guard, metrics and watching cost it in every step.

`python -m benchmarks.recalibration.watched_way SPEC`; rank R leaves costs-R.json: seconds in all steps, by part. Where
a part speaks with the other ranks, all meet before its clock starts: waiting for the slowest is not its cost.
"""

import functools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import torch

from pipeline.recalibration import loop
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.guard.spikes import Guard
from pipeline.recalibration.guard.veto import Veto
from pipeline.recalibration.metrics.layers import LayerMetrics
from pipeline.recalibration.metrics.machines import MachineMetrics
from pipeline.recalibration.metrics.recorder import MetricsRecorder
from pipeline.recalibration.watchdog import Watchdog
from pipeline.recalibration.worker import main

PARTS: dict[str, list[tuple[object, str, bool]]] = {
    "guard": [(Guard, "judge", False), (Guard, "observe", False), (Veto, "refuses", True)],
    "exchange": [(loop, "exchange", True)],
    "metrics": [
        (MetricsRecorder, "write", False),
        (MachineMetrics, "measured", False),
        (MachineMetrics, "name_the_slowest", False),
    ],
    "watchdog": [(Watchdog, "mark", False)],
    "layers": [(LayerMetrics, "_look", False), (LayerMetrics, "numbers", True)],
}
"""What is called, where it is, and whether all ranks call it together."""


class Costs:
    """Seconds by part; a part called within another counts there."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running = False

    def timed(self, part: str, function: Callable, meets: bool) -> Callable:
        @functools.wraps(function)
        def call(*arguments: object, **named: object) -> object:
            if self._running:
                return function(*arguments, **named)
            if meets:
                torch.distributed.barrier()
            self._running, began = True, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[part] += time.perf_counter() - began
                self._running = False

        return call


def watch() -> Costs:
    """From now on all parts are timed."""
    costs = Costs()
    for part, calls in PARTS.items():
        for place, name, meets in calls:
            setattr(place, name, costs.timed(part, getattr(place, name), meets))
    return costs


if __name__ == "__main__":
    costs = watch()
    main()
    out_dir = TrainingSpec.model_validate_json(sys.argv[1]).out_dir
    (out_dir / f"costs-{os.environ['RANK']}.json").write_text(json.dumps(costs.seconds))
