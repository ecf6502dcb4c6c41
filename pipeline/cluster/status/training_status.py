"""Where a training stands, by its metrics."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.recalibration.metrics import Value, read_metrics

JOB_FILE = "job.json"
_RECENT = 20
"""Steps by whose time the end is estimated."""


@dataclass(frozen=True)
class TrainingStatus:
    """Its newest step, and when it will be done."""

    step: int
    steps: int | None
    tokens: int
    loss: float | None
    tokens_per_second: float | None
    ends: datetime | None
    """At the present speed, without waiting in the queue."""


def training_status(folder: Path) -> TrainingStatus | None:
    """Of the stage in this folder; None for other stages, and before the first step."""
    lines = [line for line in read_metrics(folder) if "step_seconds" in line]
    if not lines:
        return None
    last, job_file = lines[-1], folder / JOB_FILE
    step = _count(last["step"])
    steps = steps_of(job_file) if job_file.is_file() else None
    recent = [seconds for line in lines[-_RECENT:] if (seconds := _number(line["step_seconds"])) is not None]
    return TrainingStatus(
        step=step,
        steps=steps,
        tokens=_count(last["tokens"]),
        loss=_number(last.get("loss")),
        tokens_per_second=_number(last.get("tokens_per_second")),
        ends=None if steps is None or not recent else _end(steps - step, sum(recent) / len(recent)),
    )


def _end(steps: int, seconds_per_step: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=steps * seconds_per_step)


def _number(value: Value) -> float | None:
    return value if isinstance(value, int | float) else None


def _count(value: Value) -> int:
    return int(_number(value) or 0)


def steps_of(job_file: Path) -> int | None:
    """All steps of a training, by its job.json and shards; None where the shards are not there any more."""
    from data_prep.artifact import ShardSet
    from pipeline.recalibration.attempt import TrainingSpec

    spec = TrainingSpec.model_validate_json(job_file.read_bytes())
    return spec.config.steps(ShardSet.load(spec.shards).row_length) if spec.shards.is_dir() else None
