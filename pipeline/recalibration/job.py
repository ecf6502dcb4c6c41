"""What the training processes are told: one JSON file, written by the stage and read by every rank."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.recalibration.config import RecalibrationConfig


class Job(BaseModel):
    """Inputs and output of one training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: RecalibrationConfig
    position_embedding: Literal["none", "rope"]
    layout: Path
    shards: Path
    out_dir: Path

    @property
    def description(self) -> str:
        return "recalibration" if self.position_embedding == "none" else "training with RoPE"
