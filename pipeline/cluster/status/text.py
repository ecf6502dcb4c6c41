"""A run's status for a terminal."""

from collections.abc import Iterator
from datetime import UTC, datetime

from pipeline.cluster.status.run_status import RunStatus
from pipeline.cluster.status.stage_status import StageStatus, TaskCount
from pipeline.cluster.status.training_status import TrainingStatus
from pipeline.recalibration.metrics import clock
from slurm.job import ranges


def as_text(status: RunStatus) -> str:
    """A line for every stage, and below it what a person would ask next."""
    lines = [f"run {status.run}", *(f"note: {note}" for note in status.notes)]
    for stage in status.stages:
        lines += _stage(stage)
    return "\n".join(lines)


def _stage(stage: StageStatus) -> Iterator[str]:
    jobs = f"job {', '.join(map(str, stage.jobs[-3:]))}" if stage.jobs else ""
    facts = [jobs, *_facts(stage)]
    yield f"{stage.stage:<14} {stage.state:<14} {'; '.join(fact for fact in facts if fact)}".rstrip()
    if stage.training and stage.state != "complete":
        yield f"    {training_line(stage.training, is_running=stage.state == 'running')}"
    if stage.log_lines:
        yield f"    {stage.log}"
        yield from (f"    | {line}" for line in stage.log_lines)


def _facts(stage: StageStatus) -> Iterator[str]:
    if stage.seconds is not None:
        yield f"took {clock(stage.seconds)}"
    if stage.tasks and stage.state != "complete":
        yield task_line(stage.tasks)
    if stage.nodes and stage.state == "running":
        yield f"on {stage.nodes}"
    if stage.restarts and stage.state != "complete":
        yield f"restarted {stage.restarts} times"
    if stage.detail:
        yield stage.detail


def task_line(tasks: TaskCount) -> str:
    """Tasks of an array."""
    parts = [f"{tasks.done} of {tasks.of} tasks done"]
    parts += [f"{tasks.running} running"] if tasks.running else []
    parts += [f"{tasks.waiting} waiting"] if tasks.waiting else []
    parts += [f"{len(tasks.failed)} failed ({ranges(tasks.failed)})"] if tasks.failed else []
    return ", ".join(parts)


def training_line(training: TrainingStatus, *, is_running: bool) -> str:
    """Where a training stands."""
    of = f" of {training.steps:,}" if training.steps else ""
    parts = [f"step {training.step:,}{of}", f"{training.tokens:,} tokens"]
    if training.loss is not None:
        parts.append(f"loss {training.loss:.3f}")
    if training.tokens_per_second:
        parts.append(f"{training.tokens_per_second:,.0f} tokens/s")
    if training.ends and is_running:
        left = (training.ends - datetime.now(UTC)).total_seconds()
        parts.append(f"ends in {clock(max(0.0, left))} ({training.ends.astimezone():%a %d %b %H:%M})")
    return ", ".join(parts)
