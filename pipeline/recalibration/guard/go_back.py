"""What rank 0 does when skipping updates has not helped: choose the checkpoint to go back to, or end the training."""

from pathlib import Path

from pipeline.recalibration.attempt import AttemptEnd, TrainingSpec
from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.checkpoints.state import readable_state
from pipeline.recalibration.guard.rollback import Rollback, decide, step_to_go_back_to, why_stop, write_rollbacks
from pipeline.recalibration.metrics.recorder import MetricsRecorder


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
