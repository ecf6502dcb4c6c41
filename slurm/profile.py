"""The cluster profile: how jobs are asked for on one cluster. All of its sections are optional."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from slurm.errors import SlurmError

_TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{1,2}){0,2}")
_MEMORY = re.compile(r"\d+[KMGT]?")
_OURS = ("--job-name", "-J", "--output", "-o", "--error", "-e", "--array", "-a", "--dependency", "-d", "--signal")
"""Options that the scripts set themselves: given again they would break them."""


def _one_line(text: str) -> str:
    """A value that can stand in a script's `#SBATCH` line."""
    if not text.strip() or any(ord(character) < 32 for character in text):
        raise ValueError("must be one line that is not empty, without control characters")
    return text


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("write a time limit as minutes, HH:MM:SS or D-HH:MM:SS, such as 2-00:00:00")
    return text


def _memory(text: str) -> str:
    if not _MEMORY.fullmatch(text):
        raise ValueError("write memory as 64G or 500M; 0 is all that a node has")
    return text


def _minutes(value: object) -> object:
    """A bare number means what it means to sbatch."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _free_option(text: str) -> str:
    _one_line(text)
    if not text.startswith("-"):
        raise ValueError("write options as on sbatch's command line, such as --licenses=matlab:1")
    if (name := re.split(r"[= ]", text)[0]) in _OURS:
        raise ValueError(f"{name} is set by the generated scripts")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Option = Annotated[str, AfterValidator(_free_option)]
TimeLimit = Annotated[str, BeforeValidator(_minutes), AfterValidator(_time)]
Memory = Annotated[str, BeforeValidator(_minutes), AfterValidator(_memory)]
_Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(_Section):
    """What a job asks for."""

    partition: Line | None = Field(None, description="partition, or several with commas")
    account: Line | None = Field(None, description="account that is charged")
    qos: Line | None = Field(None, description="quality of service")
    reservation: Line | None = Field(None, description="reservation")
    constraint: Line | None = Field(None, description="features that nodes must have, such as h100&ib")
    exclude: Line | None = Field(None, description="nodes never to be used, such as node[7,12]")
    time: TimeLimit | None = Field(None, description="time limit of one allocation: minutes, HH:MM:SS or D-HH:MM:SS")
    nodes: _Count | None = Field(None, description="nodes of a job that can use several")
    nodes_min: _Count | None = Field(
        None, description="fewest nodes that a job of several also runs on; default: nodes"
    )
    cpus: _Count | None = Field(None, description="CPUs on every node")
    memory: Memory | None = Field(None, description="main memory on every node, such as 64G; 0: all that it has")
    gpus: int | None = Field(None, ge=0, description="GPUs on every node")
    gpu_type: Line | None = Field(None, description="kind of GPU in SLURM's words, such as h100")
    gpus_by: Literal["gpus-per-node", "gres"] | None = Field(
        None, description="option that GPUs are asked for with; default: gpus-per-node"
    )
    processes: _Count | None = Field(
        None,
        description="processes on every node of a job of several, where there are no GPUs; default: 1",
    )
    exclusive: bool | None = Field(None, description="whole nodes, shared with no other job")
    tasks: _Count | None = Field(None, description="tasks of a job array")
    at_once: _Count | None = Field(None, description="tasks of a job array that may run at the same time")
    sbatch: tuple[Option, ...] | None = Field(None, description="more options of sbatch, as on its command line")
    srun: tuple[Option, ...] | None = Field(None, description="more options of srun, such as --mpi=none")

    @model_validator(mode="after")
    def _nodes_in_order(self) -> "Resources":
        if self.nodes and self.nodes_min and self.nodes_min > self.nodes:
            raise ValueError(f"nodes_min = {self.nodes_min} is more than nodes = {self.nodes}")
        return self

    def over(self, other: "Resources") -> "Resources":
        """These, and `other`'s where these say nothing."""
        return Resources.model_validate(other.model_dump(exclude_none=True) | self.model_dump(exclude_none=True))


class PoolResources(Resources):
    """What one kind of job asks for: a pool, and what differs from it."""

    pool: str | None = Field(None, description="name of a pool below pools")


class Container(_Section):
    """The container that the jobs' commands run in."""

    runtime: Literal["pyxis", "apptainer"] = Field(
        description="pyxis: srun --container-image; apptainer: apptainer exec"
    )
    image: Line = Field(description="image, as the runtime names it")
    mounts: tuple[Line, ...] = Field((), description="folders seen inside, such as /scratch:/scratch")
    options: tuple[Option, ...] = Field((), description="more options of the runtime, such as --nv")


class Mail(_Section):
    """Mails from SLURM."""

    user: Line = Field(description="address")
    on: tuple[Literal["BEGIN", "END", "FAIL", "REQUEUE", "TIME_LIMIT", "ALL"], ...] = Field(
        ("FAIL",), min_length=1, description="occasions"
    )


class Restarts(_Section):
    """Jobs that go on in a new allocation: after a time limit, a preemption, a lost node."""

    most: int = Field(50, ge=0, description="restarts of one job, whatever their cause")
    without_progress: int = Field(
        3, ge=1, description="restarts in a row that may bring nothing after preemptions and lost nodes; a time limit "
        "in which nothing was finished ends the job at once"
    )  # fmt: skip
    warning_seconds: int = Field(
        180, ge=10, description="SIGUSR1 comes this long before the time limit: in it the work must end in good order"
    )
    command: Line = Field(
        "scontrol requeue",
        description="requeues the job whose id follows; for nodes without scontrol: ssh login1 scontrol requeue",
    )


class ClusterProfile(_Section):
    """How one cluster is used, whatever the jobs do. Who has kinds of jobs derives a profile that names them."""

    description: str = Field("", description="for people")
    defaults: Resources = Field(default_factory=Resources, description="of all jobs")
    pools: dict[str, Resources] = Field(default_factory=dict, description="kinds of nodes, by a name of your choice")
    environment: tuple[Line, ...] = Field(
        (),
        description="lines of bash before the work: module load, export NAME=value; exports reach all nodes",
    )
    container: Container | None = Field(None, description="container of all jobs' commands")
    scratch: Line | None = Field(None, description="folder on every node for temporary files (TMPDIR), may use $USER")
    mail: Mail | None = Field(None, description="mails from SLURM")
    restarts: Restarts = Field(default_factory=Restarts, description="going on in a new allocation")

    def resolved(self, own: PoolResources) -> Resources:
        """What a job asks for: its own, where that says nothing its pool's, and then the defaults.

        Raises: SlurmError for a pool that the profile has not.
        """
        if own.pool is not None and own.pool not in self.pools:
            raise SlurmError(f"pool = {own.pool!r}: pools has {', '.join(self.pools) or 'none'}")
        of_pool = self.pools[own.pool] if own.pool else Resources()
        return Resources.model_validate(own.model_dump(exclude={"pool"})).over(of_pool.over(self.defaults))


def seconds_of(limit: str) -> int:
    """A time limit in seconds: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS (sbatch's manual page, --time)."""
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    else:
        hours, minutes, seconds = parts if len(parts) == 3 else (0, *parts, *[0] * (2 - len(parts)))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def cluster_files(folder: Path) -> list[Path]:
    """The profiles in a folder."""
    return sorted(folder.glob("*.yaml"))
