"""Rollbacks: which checkpoint, and which batches and learning rate the steps after it have; kept in rollbacks.json.

A step's batch and learning rate are functions of its number and of these records, so a run that is resumed, also with
another number of ranks, reads what it would have read.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from foundation.files import write_text
from pipeline.errors import RecipeError
from pipeline.recipe.recalibration import GuardConfig

ROLLBACKS_FILE = "rollbacks.json"


class Rollback(BaseModel):
    """One time that the training went back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=1)
    """The last step before it: the one that used up the patience."""
    to_step: int = Field(ge=0)
    """Step of the checkpoint gone back to; 0 is the start."""
    first_batch: int = Field(ge=1)
    """Number of the global batch that step to_step + 1 reads: the one after all that were read before."""
    lr_scale: float = Field(gt=0, le=1)
    """What the scheduled learning rate of all steps after to_step is multiplied with."""
    reason: str
    """Why the last update was not made."""
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _goes_back(self) -> "Rollback":
        if self.to_step >= self.step:
            raise ValueError(f"to_step = {self.to_step} is not before step = {self.step}")
        return self


class _Rollbacks(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    rollbacks: tuple[Rollback, ...]


def batch_of(step: int, rollbacks: Sequence[Rollback], steps: int) -> int:
    """Number (1 .. `steps`) of the global batch that a step reads; without rollbacks, the step's own.

    The run has rows for `steps` batches: those that are passed over are made up for by reading the first ones again.
    """
    return (_batch_without_end(step, rollbacks) - 1) % steps + 1


def lr_scale_of(step: int, rollbacks: Sequence[Rollback]) -> float:
    """What the scheduled learning rate of a step is multiplied with."""
    rollback = _in_force(step, rollbacks)
    return rollback.lr_scale if rollback else 1.0


def decide(
    step: int, to_step: int, rollbacks: Sequence[Rollback], config: GuardConfig, *, reason: str
) -> Rollback | None:
    """The rollback from `step`, whose skip used up the patience, to the checkpoint of `to_step`.

    None: the run must stop (`why_stop`). Where trouble recurs (`recurs`) and the policy is to lower the learning rate,
    it falls by `lr_factor` from what it was at `step`; it is never raised again.
    """
    if why_stop(step, rollbacks, config):
        return None
    factor = config.lr_factor if recurs(step, rollbacks, config) else 1.0
    return Rollback(
        step=step,
        to_step=to_step,
        first_batch=_batch_without_end(step, rollbacks) + 1,
        lr_scale=lr_scale_of(step, rollbacks) * factor,
        reason=reason,
    )


def why_stop(step: int, rollbacks: Sequence[Rollback], config: GuardConfig) -> str | None:
    """Why a run that had to go back after `step` must stop instead; None if it may."""
    if config.recurrence == "stop" and recurs(step, rollbacks, config):
        return f"trouble at step {step:,} again, after that at {rollbacks[-1].step:,}, and guard.recurrence is stop"
    if len(rollbacks) >= config.rollbacks:
        return f"trouble at step {step:,}, and all {config.rollbacks} of guard.rollbacks are used up"
    return None


def recurs(step: int, rollbacks: Sequence[Rollback], config: GuardConfig) -> bool:
    """Whether a row of skips that ended at `step` is the last trouble again, rather than another one.

    It is where step <= the last rollback's step + patience: the row began before one update was made beyond the steps
    of that trouble, though on other batches.
    """
    return bool(rollbacks) and step <= rollbacks[-1].step + config.patience


def step_to_go_back_to(
    calm: Iterable[int], step: int, in_a_row: int, rollbacks: Sequence[Rollback], config: GuardConfig
) -> int:
    """The newest calm checkpoint from before the trouble; where it is the last trouble again, from before that one's.

    `calm`: steps of checkpoints at which no update was being skipped; `step` ends `in_a_row` updates that were skipped.
    0, the start, if there is none.
    """
    before = [checkpoint for checkpoint in calm if checkpoint <= step - in_a_row]
    if recurs(step, rollbacks, config):
        before = [checkpoint for checkpoint in before if checkpoint < rollbacks[-1].to_step] or before
    return max(before, default=0)


def read_rollbacks(folder: Path) -> tuple[Rollback, ...]:
    """The rollbacks of a training, oldest first; none where it has no such file.

    Raises: RecipeError if the file is not valid.
    """
    path = folder / ROLLBACKS_FILE
    if not path.is_file():
        return ()
    try:
        return _Rollbacks.model_validate_json(path.read_bytes()).rollbacks
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise RecipeError(
            f"{path}: not the record of a training's rollbacks: {where}: {problem['msg']}; restore it, nothing else "
            "tells which batches were passed over"
        ) from error


def write_rollbacks(folder: Path, rollbacks: Sequence[Rollback]) -> None:
    """Writes them, atomically and synced to disk; only one rank may."""
    whole = _Rollbacks(rollbacks=tuple(rollbacks))
    write_text(folder / ROLLBACKS_FILE, whole.model_dump_json(indent=2) + "\n")


def _batch_without_end(step: int, rollbacks: Sequence[Rollback]) -> int:
    rollback = _in_force(step, rollbacks)
    return rollback.first_batch + step - rollback.to_step - 1 if rollback else step


def _in_force(step: int, rollbacks: Sequence[Rollback]) -> Rollback | None:
    """The last rollback that a step came after: later ones went back to later checkpoints and left it as it was."""
    return next((rollback for rollback in reversed(rollbacks) if rollback.to_step < step), None)
