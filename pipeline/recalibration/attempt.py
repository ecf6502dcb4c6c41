"""One life of the training processes: what they are to do, and why they ended. Two JSON files."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from foundation.files import write_json
from pipeline.recipe.recalibration import ResolvedTraining

JOB_FILE = "job.json"
END_FILE = "end.json"


class TrainingSpec(BaseModel):
    """Inputs and output of one training; written by the stage (job.json), read by every rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: ResolvedTraining
    position_embedding: Literal["none", "rope"]
    """What the model has in the end."""
    tensor_parallel: int
    """TP degree of the training; the layout may have another."""
    layout: Path
    shards: Path
    out_dir: Path

    @property
    def description(self) -> str:
        return "recalibration" if self.position_embedding == "none" else "training with RoPE"

    @property
    def checkpoints(self) -> Path:
        return self.out_dir / "checkpoints"


class AttemptEnd(BaseModel):
    """Why the training processes ended; rank 0's last act, or that of a rank that refuses to go on.

    finished: the budget is used up. stopped: a signal came, the step's checkpoint is there. drop: the next processes go
    on without positional embedding. rollback: they go on from an older checkpoint. diverged: the guard gave up.
    refused: what was found cannot be gone on with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Literal["finished", "stopped", "drop", "rollback", "diverged", "refused"]
    step: int
    message: str = ""

    def save(self, out_dir: Path) -> None:
        write_json(out_dir / END_FILE, self.model_dump())

    @staticmethod
    def take(out_dir: Path) -> "AttemptEnd | None":
        """What is there, which is then removed: the next processes leave their own."""
        path = out_dir / END_FILE
        if not path.is_file():
            return None
        end = AttemptEnd.model_validate_json(path.read_bytes())
        path.unlink()
        return end
