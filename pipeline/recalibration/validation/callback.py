"""When a training is validated, and where the results go."""

from collections.abc import Callable

import deepspeed

from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.callback import Callback
from pipeline.recalibration.metrics.files import Line
from pipeline.recalibration.metrics.recorder import MetricsRecorder
from pipeline.recalibration.metrics.validation_result import write_validation
from pipeline.recalibration.phases import Phase
from pipeline.recalibration.step import Step
from pipeline.recalibration.validation.validation import Validation


class ValidationCallback(Callback):
    """Validates before the first step, every `validation_every` steps, and after the last one of a phase."""

    def __init__(
        self,
        spec: TrainingSpec,
        engine: deepspeed.DeepSpeedEngine,
        validation: Validation,
        phase: Phase,
        *,
        recorder: MetricsRecorder | None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`progress` is told of every pass."""
        self._spec, self._engine, self._validation, self._phase = spec, engine, validation, phase
        self._recorder, self._progress = recorder, progress

    def attempt_begin(self, done: int, history: list[Line]) -> None:
        if done == 0:
            metrics = self._validate(0)
            if self._recorder:
                self._recorder.write(0, metrics)
        elif done == self._phase.first - 1:
            dropped = self._validation.measure(self._engine, self._progress).scalars()
            if self._recorder:
                self._recorder.event("dropped", done, **dropped)

    def after_update(self, step: Step) -> None:
        if step.number % self._spec.config.validation_every == 0 or step.number == self._phase.last:
            with step.phase("validation"):
                step.validation = self._validate(step.number)

    def _validate(self, step: int) -> dict[str, float]:
        """The numbers of a validation, all of which stand in validation.jsonl."""
        result = self._validation.measure(self._engine, self._progress)
        if self._recorder:
            write_validation(self._spec.out_dir, step, result)
        return result.scalars()
