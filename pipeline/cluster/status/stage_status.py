"""What has become of a stage: its manifest, and its jobs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.records import Submitted
from pipeline.cluster.status.job_status import ENDED_BADLY, JobStatus, State, job_status
from pipeline.cluster.status.knowledge import Knowledge, jobs_that_count
from pipeline.cluster.status.log_text import last_lines
from pipeline.cluster.status.training_status import TrainingStatus, training_status
from pipeline.runs.manifest import Manifest


@dataclass(frozen=True)
class TaskCount:
    """Tasks of an array."""

    of: int
    done: int
    running: int
    waiting: int
    failed: tuple[int, ...]
    """Their numbers."""


@dataclass(frozen=True)
class StageStatus:
    """A stage of the run."""

    stage: str
    state: State
    jobs: tuple[int, ...] = ()
    """The newest jobs of it."""
    detail: str = ""
    """Why it waits, or failed."""
    restarts: int = 0
    nodes: str = ""
    tasks: TaskCount | None = None
    training: TrainingStatus | None = None
    seconds: float | None = None
    """How long a complete stage took."""
    log: str | None = None
    log_lines: tuple[str, ...] = ()
    """The end of the log of what failed."""

    @property
    def ended_badly(self) -> bool:
        return self.state in ENDED_BADLY

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = asdict(self)
        if self.training and self.training.ends:
            facts["training"]["ends"] = self.training.ends.isoformat(timespec="seconds")
        return facts


def stage_status(stage: str, journal: Sequence[Submitted], folder: JobsFolder, knowledge: Knowledge) -> StageStatus:
    """One stage, from all three sources. journal: the jobs that were submitted for it."""
    jobs = jobs_that_count(journal)
    statuses = [job_status(job, folder, knowledge) for job in jobs]
    numbers, tasks = tuple(job.job_id for job in jobs), count_tasks(statuses)
    restarts = max((status.restarts for status in statuses), default=0)
    training = training_status(folder.run / stage)
    if manifest := Manifest.load(folder.run / stage):
        return StageStatus(
            stage, "complete", numbers, restarts=restarts, tasks=tasks, training=training, seconds=manifest.seconds
        )
    if not statuses:
        return StageStatus(stage, "not submitted", training=training)
    decisive = deciding(statuses, tasks)
    log = decisive.log
    return StageStatus(
        stage,
        decisive.state,
        numbers,
        _detail(decisive, folder.excluded(decisive.job.part)),
        restarts=restarts,
        nodes=decisive.nodes,
        tasks=tasks,
        training=training,
        log=str(log) if log else None,
        log_lines=tuple(last_lines(log)) if log and decisive.state in ENDED_BADLY else (),
    )


def _detail(status: JobStatus, excluded: Path) -> str:
    """Why it waits, or failed; of one that waits also which nodes it does not use."""
    nodes = excluded.read_text().strip() if status.state == "waiting" and excluded.is_file() else ""
    return f"{status.detail}; not on {nodes}" if nodes else status.detail


def count_tasks(statuses: Sequence[JobStatus]) -> TaskCount | None:
    """Tasks by their newest state; None where there is no array. Tasks that were done before have no job."""
    arrays = [status for status in statuses if status.job.is_array]
    if not arrays:
        return None
    newest: dict[int, State] = {}
    for array in arrays:
        newest |= array.of_tasks
    failed = tuple(sorted(task for task, state in newest.items() if state in ENDED_BADLY))
    states = list(newest.values())
    running, waiting = states.count("running"), states.count("waiting")
    of = arrays[-1].job.of
    return TaskCount(of, of - len(failed) - running - waiting, running, waiting, failed)


def deciding(statuses: Sequence[JobStatus], tasks: TaskCount | None) -> JobStatus:
    """The job that the stage's state is that of. An array's tasks that were done in a later one no longer count."""
    newest_first = statuses[::-1]
    arrays = [status for status in newest_first if status.job.is_array]
    if tasks is None or not arrays:
        return newest_first[0]
    if tasks.failed:
        failed = {*tasks.failed}
        return next(array for array in arrays if failed & {*array.of_tasks} and array.state in ENDED_BADLY)
    if tasks.running or tasks.waiting:
        state = "running" if tasks.running else "waiting"
        return next(array for array in arrays if state in array.of_tasks.values())
    merge = next((status for status in newest_first if not status.job.is_array), arrays[0])
    if merge.state == "complete":
        return JobStatus(merge.job, "lost", "its jobs ended well, and no manifest is there (yet)", log=merge.log)
    return merge
