"""The guard of a running training: it judges every update, and goes back where skipping has not helped."""

import math
from pathlib import Path

import deepspeed

from pipeline.recalibration.attempt import AttemptEnd, TrainingSpec
from pipeline.recalibration.callback import Callback
from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.checkpoints.state import readable_state
from pipeline.recalibration.guard.rollback import Rollback, decide, step_to_go_back_to, why_stop, write_rollbacks
from pipeline.recalibration.guard.spikes import Guard
from pipeline.recalibration.guard.veto import install_veto
from pipeline.recalibration.metrics.files import Line
from pipeline.recalibration.metrics.recorder import MetricsRecorder
from pipeline.recalibration.step import Step


class GuardCallback(Callback):
    """Lets DeepSpeed leave out updates that would harm the model, and ends the attempt for a rollback."""

    def __init__(
        self,
        spec: TrainingSpec,
        engine: deepspeed.DeepSpeedEngine,
        *,
        first_step: int,
        rollbacks: tuple[Rollback, ...],
        recorder: MetricsRecorder | None,
    ) -> None:
        """`first_step`: of the model that is trained now; numbers of another one say nothing about it."""
        self._spec, self._first_step, self._rollbacks, self._recorder = spec, first_step, rollbacks, recorder
        self._guard = Guard(spec.config.guard)
        self._loss = math.nan
        self._veto = install_veto(engine, self._judge)

    def attempt_begin(self, done: int, history: list[Line]) -> None:
        self._guard.replay(line for line in history if line["step"] >= self._first_step)

    def before_update(self, step: Step) -> None:
        self._loss = step.loss

    def _judge(self, grad_norm: float) -> str | None:
        """What the veto asks within the update, when the norm is known."""
        return self._guard.judge(self._loss, grad_norm)

    def after_update(self, step: Step) -> None:
        step.grad_norm, step.skipped = self._veto.norm, self._veto.reason
        self._guard.observe(step.loss, step.grad_norm, step.skipped is not None)
        step.goes_back = self._guard.must_go_back

    def line_written(self, step: Step) -> None:
        if self._recorder and step.skipped:
            self._recorder.event(
                "skip",
                step.number,
                reason=step.skipped,
                in_a_row=self._guard.skips_in_a_row,
                loss=step.loss,
                grad_norm=step.grad_norm,
                lr=step.lr,
            )
            self._recorder.say(f"step {step.number:,}: update skipped: {step.skipped}")

    def reason_to_end(self, step: Step) -> AttemptEnd | None:
        """A rollback; rank 0's decision where to, or that the training ends, is what counts."""
        if not step.goes_back or step.skipped is None:
            return None
        if self._recorder is None:
            return AttemptEnd(reason="rollback", step=step.number)
        return go_back(
            self._spec, step.number, self._guard.skips_in_a_row, self._rollbacks, step.skipped, self._recorder
        )


def go_back(
    spec: TrainingSpec,
    step: int,
    in_a_row: int,
    rollbacks: tuple[Rollback, ...],
    reason: str,
    recorder: MetricsRecorder,
) -> AttemptEnd:
    """Records the rollback in rollbacks.json and events.jsonl; the processes that start next go on from there.

    `step` ends `in_a_row` updates that were skipped, the last one for `reason`.
    """
    guard = spec.config.guard
    to_step = step_to_go_back_to(calm_steps(spec.checkpoints), step, in_a_row, rollbacks, guard)
    rollback = decide(step, to_step, rollbacks, guard, reason=reason)
    if rollback is None:
        why = why_stop(step, rollbacks, guard)
        recorder.event("diverged", step, reason=reason, why=why)
        return AttemptEnd(reason="diverged", step=step, message=f"{why}; the last skipped update: {reason}")
    write_rollbacks(spec.out_dir, [*rollbacks, rollback])
    facts = rollback.model_dump(mode="json", include={"to_step", "first_batch", "lr_scale", "reason"})
    recorder.event("rollback", step, **facts)
    batch, lr_scale = rollback.first_batch, rollback.lr_scale
    recorder.say(f"step {step:,}: goes back to step {to_step:,}, from batch {batch:,}, lr x {lr_scale:g}")
    return AttemptEnd(reason="rollback", step=step)


def calm_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints at which no update was being skipped."""
    states = map(readable_state, folders.complete(folder))
    return [state.step for state in states if state is not None and state.calm]
