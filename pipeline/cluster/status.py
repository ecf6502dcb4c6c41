"""What has become of a run: its manifests, what its jobs said of themselves, and SLURM, none of them trusted alone."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pipeline.cluster.folder import Attempt, JobNames, JobsFolder, Submitted
from pipeline.errors import RecipeError
from pipeline.recalibration.metrics import read_metrics
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runs.folder import RECIPE_FILE
from pipeline.runs.manifest import Manifest
from pipeline.stages.order import stages_of
from slurm import client
from slurm.client import JobState

State = Literal["complete", "running", "waiting", "failed", "cancelled", "lost", "not submitted"]
LOG_LINES = 8
_NEVER = ("Dependency", "DependencyNeverSatisfied")


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
class Training:
    """Where a training stands, by its metrics."""

    step: int
    steps: int | None
    tokens: int
    loss: float | None
    tokens_per_second: float | None
    ends: datetime | None
    """At the present speed, without waiting in the queue."""


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
    training: Training | None = None
    seconds: float | None = None
    """How long a complete stage took."""
    log: str | None = None
    log_lines: tuple[str, ...] = ()
    """The end of the log of what failed."""

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        if self.training and self.training.ends:
            found["training"]["ends"] = self.training.ends.isoformat(timespec="seconds")
        return found


@dataclass(frozen=True)
class RunStatus:
    """All stages of a run."""

    run: str
    stages: tuple[StageStatus, ...]
    notes: tuple[str, ...] = ()
    """What could not be asked."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing of it waits or runs."""
        return not any(stage.state in ("running", "waiting") for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        return {"run": self.run, "stages": [stage.as_dict() for stage in self.stages], "notes": list(self.notes)}


@dataclass
class _Queue:
    """SLURM's knowledge of a run's jobs."""

    states: dict[int, list[JobState]] = field(default_factory=dict)
    reachable: bool = True
    note: str = ""


def run_of(name: str) -> Path:
    """The folder of a run, given by its path or by its name in ./runs.

    Raises: RecipeError if there is none.
    """
    for path in (Path(name), Path("runs") / name):
        if (path / RECIPE_FILE).is_file() or JobsFolder(path).exists:
            return path
    raise RecipeError(
        f"{name}: no run in this folder, nor in ./runs by this name; name the folder that holds the run's stages"
    )


def recipe_of(run: Path) -> Recipe:
    """The recipe of a run that may not have begun: as it was submitted or as a stage wrote it, whichever is newer."""
    copies = [*(run / "jobs").glob("recipe-*.yaml"), *run.glob(RECIPE_FILE)]
    if not copies:
        raise RecipeError(f"{run}: holds no recipe")
    return load_recipe(max(copies, key=lambda path: path.stat().st_mtime))


def status_of(run: Path) -> RunStatus:
    """Raises: RecipeError if the folder holds no run."""
    recipe, folder = recipe_of(run), JobsFolder(run)
    journal = folder.submitted()
    queue = ask(folder, recipe.name, journal)
    stages = [
        stage_status(run, stage.name, [job for job in journal if job.stage == stage.name], folder, queue)
        for stage in stages_of(recipe)
    ]
    return RunStatus(recipe.name, tuple(stages), (queue.note,) if queue.note else ())


def ask(folder: JobsFolder, name: str, journal: Sequence[Submitted]) -> _Queue:
    """What SLURM knows of the jobs; nothing where it cannot be asked."""
    if not journal:
        return _Queue()
    names = JobNames(name, folder.label)
    try:
        active = client.listed(names.are_ours)
    except client.SlurmUnreachable as error:
        return _Queue(
            reachable=False, note=f"SLURM could not be asked ({error}); what follows is from the run's folder"
        )
    found = client.states_of([job.job_id for job in _newest(journal)], active)
    # Numbers begin anew when a controller lost its state: another's job is not ours.
    return _Queue(
        {number: [state for state in states if names.are_ours(state.name)] for number, states in found.items()}
    )


def _newest(journal: Sequence[Submitted]) -> list[Submitted]:
    """Of every part the jobs that count: the newest, and for arrays all, since each has tasks of its own."""
    last = {job.part: job for job in journal}
    return [job for job in journal if job.does == "tasks" or job is last[job.part]]


def stage_status(run: Path, stage: str, journal: Sequence[Submitted], folder: JobsFolder, queue: _Queue) -> StageStatus:
    """One stage, from all three sources."""
    manifest = Manifest.load(run / stage)
    jobs = _newest(journal)
    found = [_job_status(job, folder, queue) for job in jobs]
    tasks = count_tasks([one for one in found if one.job.does == "tasks"])
    training = training_of(run / stage)
    numbers = tuple(job.job_id for job in jobs)
    restarts = max((one.restarts for one in found), default=0)
    shown = {"restarts": restarts, "tasks": tasks, "training": training}
    if manifest is not None:
        return StageStatus(stage, "complete", numbers, seconds=manifest.seconds, **shown)
    if not found:
        return StageStatus(stage, "not submitted", training=training)
    worst = deciding(found, tasks)
    failed = worst.state in ("failed", "cancelled", "lost")
    excluded = folder.excluded(worst.job.part)
    without = excluded.read_text().strip() if worst.state == "waiting" and excluded.is_file() else ""
    log = worst.log
    return StageStatus(
        stage,
        worst.state,
        numbers,
        f"{worst.detail}; not on {without}" if without else worst.detail,
        nodes=worst.nodes,
        log=str(log) if log else None,
        log_lines=tuple(last_lines(log)) if failed and log else (),
        **shown,
    )


@dataclass(frozen=True)
class _JobStatus:
    """A job, or an array as a whole."""

    job: Submitted
    state: State
    detail: str
    restarts: int
    nodes: str
    log: Path | None
    of_tasks: dict[int, State]
    """By number of the task."""


def _job_status(job: Submitted, folder: JobsFolder, queue: _Queue) -> _JobStatus:
    indices = [task - job.offset for task in job.tasks] or [None]
    by_index = {state.task: state for state in queue.states.get(job.job_id, [])}
    attempts = folder.attempts_of(job.part, job.job_id, indices)
    of_index: dict[int | None, tuple[State, str]] = {}
    for index in indices:
        last = attempts[index].attempts[-1] if index in attempts and attempts[index].attempts else None
        if by_index and index not in by_index and last is None:  # SLURM forgets at once what it has not begun
            of_index[index] = "cancelled", "cancelled while it waited"
        else:
            of_index[index] = judged(by_index.get(index), last, reachable=queue.reachable)
    first = min(of_index, key=lambda index: _ORDER.index(of_index[index][0]))
    state, detail = of_index[first]
    slurm = by_index.get(first)
    last = attempts[first].attempts[-1] if first in attempts and attempts[first].attempts else None
    return _JobStatus(
        job,
        state,
        detail,
        restarts=max([last.restarts if last else 0, slurm.restarts if slurm else 0]),
        nodes=(slurm.nodes if slurm else "") or (",".join(last.nodes) if last else ""),
        log=job.log_file(first),
        of_tasks={index + job.offset: pair[0] for index, pair in of_index.items() if index is not None},
    )


_ORDER: tuple[State, ...] = ("failed", "lost", "cancelled", "running", "waiting", "complete", "not submitted")


def judged(slurm: JobState | None, last: Attempt | None, *, reachable: bool) -> tuple[State, str]:
    """State of a job or task and why, from what SLURM says and from the last allocation that it wrote down itself."""
    said = last.message if last else ""
    if slurm is not None and slurm.is_active:
        if slurm.is_running:
            return "running", ""
        went_on = f"; before: {said}" if said else ""
        if slurm.reason == "DependencyNeverSatisfied":
            return "cancelled", "what it waits for has failed"
        return "waiting", f"{slurm.reason or 'to be scheduled'}{went_on}"
    if slurm is not None and slurm.state == "COMPLETED":
        return "complete", ""
    if slurm is not None:
        words = _WORDS.get(slurm.state, f"ended by SLURM as {slurm.state}")
        if slurm.state == "CANCELLED" and slurm.reason in _NEVER:
            words = "what it waited for has failed"
        where = f" on {slurm.nodes}" if slurm.nodes and slurm.state in ("NODE_FAIL", "OUT_OF_MEMORY") else ""
        state: State = "cancelled" if slurm.state in ("CANCELLED", "REVOKED") else "failed"
        return state, f"{words}{where}{': ' if said else ''}{said}"
    if last is None:
        if reachable:
            return "lost", "SLURM no longer knows the job, and it never began"
        return "waiting", "not begun"
    if last.ended is None:
        if reachable:
            return "lost", f"SLURM no longer knows the job, which began on {', '.join(last.nodes)} and did not end well"
        return "running", ""
    if last.code == 0:
        return "complete", ""
    if last.code == 75 and not reachable:
        return "waiting", said
    return "failed", said


_WORDS = {
    "TIMEOUT": "ended by its time limit",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted, and not requeued",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "its deadline has passed",
    "FAILED": "failed",
}


def deciding(found: Sequence[_JobStatus], tasks: TaskCount | None) -> _JobStatus:
    """The job that the stage's state is that of. An array's tasks that were done in a later one no longer count."""
    last_merge = next((one for one in reversed(found) if one.job.does != "tasks"), None)
    arrays = [one for one in found if one.job.does == "tasks"]
    if tasks is None or not arrays:
        return found[-1]
    if tasks.failed:
        return next(
            one for one in reversed(arrays) if set(one.of_tasks) & set(tasks.failed) and one.state in _ORDER[:3]
        )
    if tasks.running or tasks.waiting:
        wanted = "running" if tasks.running else "waiting"
        return next(one for one in reversed(arrays) if wanted in one.of_tasks.values())
    merge = last_merge or arrays[-1]
    if merge.state == "complete":
        return _JobStatus(
            merge.job, "lost", "its jobs ended well, and no manifest is there (yet)", 0, "", merge.log, {}
        )
    return merge


def count_tasks(arrays: Sequence[_JobStatus]) -> TaskCount | None:
    """Tasks by their newest state; None where there is no array. Tasks that were done before have no job."""
    if not arrays:
        return None
    newest: dict[int, State] = {}
    for one in arrays:
        newest |= one.of_tasks
    of = arrays[-1].job.of
    failed = tuple(sorted(task for task, state in newest.items() if state in ("failed", "cancelled", "lost")))
    running, waiting = (sum(state == wanted for state in newest.values()) for wanted in ("running", "waiting"))
    return TaskCount(of, of - len(failed) - running - waiting, running, waiting, failed)


def training_of(folder: Path) -> Training | None:
    """Where a training stands; None for other stages, and before the first step."""
    lines = [line for line in read_metrics(folder) if "step_seconds" in line]
    if not lines:
        return None
    last, job_file = lines[-1], folder / "job.json"
    steps = None
    if job_file.is_file():
        steps = steps_of(job_file)
    recent = [line["step_seconds"] for line in lines[-20:]]
    ends = None
    if steps is not None:
        ends = datetime.now(UTC) + timedelta(seconds=(steps - last["step"]) * sum(recent) / len(recent))
    return Training(last["step"], steps, last["tokens"], last.get("loss"), last.get("tokens_per_second"), ends)


def steps_of(job_file: Path) -> int | None:
    """All steps of a training, by its job.json and shards."""
    from data_prep.artifact import ShardSet
    from pipeline.recalibration.job import Job

    job = Job.model_validate_json(job_file.read_bytes())
    return job.config.steps(ShardSet.load(job.shards).row_length) if job.shards.is_dir() else None


def last_lines(log: Path, count: int = LOG_LINES) -> list[str]:
    """The end of a log, as it looked on a terminal: of a progress bar's states only the last."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 65536))
        text = file.read().decode(errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-count:]
