"""What rank 0 does when skipping updates has not helped: choose the checkpoint to go back to, or end the training."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.checkpoints.state import readable_state
from pipeline.recalibration.guard.rollbacks import Rollback, decide, recurs, why_stop, write_rollbacks
from pipeline.recalibration.job import End, Job
from pipeline.recalibration.metrics import Metrics
from pipeline.recipe.recalibration import GuardConfig


def go_back(job: Job, step: int, in_a_row: int, rollbacks: tuple[Rollback, ...], reason: str, metrics: Metrics) -> End:
    """Records the return in rollbacks.json and events.jsonl; the processes that start next go on from there.

    `step` ends `in_a_row` updates that were skipped.
    """
    guard = job.config.guard
    to_step = step_to_go_back_to(calm_steps(job.checkpoints), step, in_a_row, rollbacks, guard)
    made = decide(step, to_step, rollbacks, guard, reason=reason)
    if made is None:
        why = why_stop(step, rollbacks, guard)
        metrics.event("diverged", step, reason=reason, why=why)
        return End(reason="diverged", step=step, message=f"{why}; the last skipped update: {reason}")
    write_rollbacks(job.out_dir, [*rollbacks, made])
    facts = made.model_dump(mode="json", include={"to_step", "first_batch", "lr_scale", "reason"})
    metrics.event("rollback", step, **facts)
    metrics.say(
        f"step {step:,}: goes back to step {to_step:,}, from batch {made.first_batch:,}, lr x {made.lr_scale:g}"
    )
    return End(reason="rollback", step=step)


def calm_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints at which no update was being skipped."""
    states = map(readable_state, folders.complete(folder))
    return [state.step for state in states if state is not None and state.calm]


def step_to_go_back_to(
    calm: Iterable[int], step: int, in_a_row: int, rollbacks: tuple[Rollback, ...], config: GuardConfig
) -> int:
    """The newest calm checkpoint from before the trouble; where it is the last trouble again, from before that one's.

    0, the start, if there is none.
    """
    before = [found for found in calm if found <= step - in_a_row]
    if recurs(step, rollbacks, config):
        before = [found for found in before if found < rollbacks[-1].to_step] or before
    return max(before, default=0)
