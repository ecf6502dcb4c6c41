"""What a validation finds, and its line in validation.jsonl."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.files import append_line
from pipeline.recalibration.metrics.files import VALIDATION_FILE, finite, keep_steps


@dataclass(frozen=True)
class ValidationResult:
    """What one validation found, the same on every rank; keys are multiples of the training length."""

    losses: dict[int, float]
    """Nats per token: of counted tokens where documents are masked."""
    recalls: dict[int, float]
    """Share of repeated tokens that were recalled (see `validation.recall`); empty where that is not asked."""
    longest: int
    """Tokens of a row of the longest length."""
    by_position: list[float]
    """Loss at the longest length in equal parts of the row, from its start to its end, nats per token."""

    def scalars(self) -> dict[str, float]:
        """validation_loss (at the training length), validation_loss_2x, ..., recall_1x, recall_2x, ..."""
        losses = {f"validation_loss{'' if n == 1 else f'_{n}x'}": loss for n, loss in self.losses.items()}
        return losses | {f"recall_{multiple}x": recall for multiple, recall in self.recalls.items()}

    def as_json(self) -> dict[str, Any]:
        """The scalars, and by_position: {tokens of the longest row: [losses]}; what is not finite is None."""
        by_position = {str(self.longest): [finite(loss) for loss in self.by_position]}
        return {name: finite(value) for name, value in self.scalars().items()} | {"by_position": by_position}


def write_validation(folder: Path, step: int, result: ValidationResult) -> None:
    """Adds a line to validation.jsonl, on disk when it returns; lines of this step and later ones are taken off.

    Those were written before the run went back to an earlier checkpoint.
    """
    path = folder / VALIDATION_FILE
    keep_steps(path, step - 1)
    append_line(path, json.dumps({"step": step, **result.as_json()}))
