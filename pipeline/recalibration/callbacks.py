"""The callbacks of a training, and the one order in which all of them are told of its points."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed

from model_surgery.layout import Layout
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.callback import Callback
from pipeline.recalibration.checkpoints.checkpointer import Checkpointer
from pipeline.recalibration.guard.callback import GuardCallback
from pipeline.recalibration.guard.rollback import Rollback
from pipeline.recalibration.metrics.layers import LayerMetrics
from pipeline.recalibration.metrics.machines import MachineMetrics
from pipeline.recalibration.metrics.recorder import MetricsRecorder
from pipeline.recalibration.phases import Phase
from pipeline.recalibration.step import Step
from pipeline.recalibration.stop_request import StopRequest
from pipeline.recalibration.validation.callback import ValidationCallback
from pipeline.recalibration.validation.validation import Validation
from pipeline.recalibration.watchdog import Watchdog


class FP8WarmUp(Callback):
    """The first steps of a training in FP8 are computed in bf16."""

    def __init__(self, fp8: Any, steps: int) -> None:
        """`fp8`: the model's switch; `steps`: how many are in bf16."""
        self._fp8, self._steps = fp8, steps

    def step_begin(self, step: Step) -> None:
        self._fp8.active = step.number > self._steps


def callbacks_of(
    spec: TrainingSpec,
    engine: deepspeed.DeepSpeedEngine,
    *,
    trained: Layout,
    phase: Phase,
    rollbacks: tuple[Rollback, ...],
    stop_request: StopRequest,
    watchdog: Watchdog,
    machines: MachineMetrics,
    validation: Validation,
    recorder: MetricsRecorder | None,
) -> list[Callback]:
    """All of them, in order.

    The order matters where one reads what another has left in the step: the checkpointer publishes before a
    validation makes all ranks wait, and takes a checkpoint at `step_end` if that validation was the best so far.
    A rollback has the word before a request to stop.
    """
    config = spec.config
    fp8, fp8_warm_up = engine.module.fp8, config.fp8.warmup_steps if config.fp8 else 0
    guard = GuardCallback(spec, engine, first_step=phase.first, rollbacks=rollbacks, recorder=recorder)
    checkpointer = Checkpointer(
        spec,
        engine,
        trained=trained,
        phase=phase,
        rollbacks=len(rollbacks),
        recorder=recorder,
        progress=watchdog.progress,
    )
    return [
        watchdog,
        *([] if fp8 is None else [FP8WarmUp(fp8, fp8_warm_up)]),
        machines,
        guard,
        LayerMetrics(engine.module, trained.shape, every=config.layer_numbers_every),
        checkpointer,
        ValidationCallback(spec, engine, validation, phase, recorder=recorder, progress=watchdog.progress),
        stop_request,
    ]


@contextmanager
def phase_of_step(callbacks: list[Callback], step: int, name: str) -> Iterator[None]:
    """Tells all of the beginning and the end of a part of a step."""
    for callback in callbacks:
        callback.phase_begin(step, name)
    try:
        yield
    finally:
        for callback in reversed(callbacks):
            callback.phase_end(step, name)
