"""What is written down of a run's jobs: by the submit that SLURM accepted them, and by the jobs themselves."""

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.cluster.stage_jobs import Does


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Submitted(_Record):
    """A job that SLURM has accepted: a line of submitted.jsonl."""

    time: datetime
    part: str
    stage: str
    does: Does
    job_id: int
    name: str
    after: str
    """Its dependencies, as sbatch was told."""
    tasks: tuple[int, ...] = ()
    """Numbers of the tasks among all of the part; empty for a job that is no array."""
    offset: int = 0
    """Number of a task less its index in SLURM's array."""
    of: int = 1
    """How many tasks the part has."""
    log: str
    """Path of its logs without their ending: .JOB.log, .ARRAY_INDEX.log, .JOB.NODE.log."""

    @property
    def is_array(self) -> bool:
        return self.does == "tasks"

    @property
    def indices(self) -> tuple[int | None, ...]:
        """Of its tasks in SLURM's array; a single None for a job that is no array."""
        return tuple(task - self.offset for task in self.tasks) or (None,)

    def log_file(self, index: int | None) -> Path:
        """The log of the job, or of the task with that index in SLURM's array."""
        number = str(self.job_id) if index is None else f"{self.job_id}_{index}"
        return Path(f"{self.log}.{number}.log")


class Attempt(_Record):
    """One allocation in which a job, or a task, worked."""

    restarts: int
    """How often SLURM had restarted the job before."""
    nodes: tuple[str, ...]
    started: datetime
    progress: int
    """What the stage's folder held at the start, see `pipeline.runs.stage.Stage.progress`."""
    ended: datetime | None = None
    """None: it is under way, or ended without being able to say so."""
    code: int | None = None
    """Exit code; 75 where it is to go on in another allocation."""
    message: str = ""
    """Why it ended otherwise than well."""


class Attempts(_Record):
    """All allocations of a job or a task: attempts/PART.JOB[_INDEX].json."""

    part: str
    job_id: int
    index: int | None
    """Index in SLURM's array."""
    attempts: tuple[Attempt, ...] = ()


class JobNames:
    """Names of a run's jobs in SLURM: RUN.PART.LABEL, or RUN.PART+OFFSET.LABEL for a further array of tasks."""

    def __init__(self, run: str, label: str) -> None:
        """label: what no other run's jobs have."""
        self._prefix, self._suffix = f"{run}.", f".{label}"

    def are_ours(self, name: str) -> bool:
        return name.startswith(self._prefix) and name.endswith(self._suffix)

    def write(self, part: str, offset: int = 0) -> str:
        return f"{self._prefix}{part}{f'+{offset}' if offset else ''}{self._suffix}"

    def read(self, name: str) -> tuple[str, int]:
        """Part and offset."""
        part, _, offset = name.removeprefix(self._prefix).removesuffix(self._suffix).partition("+")
        return part, int(offset or 0)
