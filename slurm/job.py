"""A job before it is submitted."""

from dataclasses import dataclass
from pathlib import Path

from slurm.profile import Resources

REQUEUE_CODE = 75
"""Exit code of work that stopped in good order and may go on in a new allocation (EX_TEMPFAIL of sysexits.h)."""


@dataclass(frozen=True)
class Job:
    """One job, or one array of them.

    `command` is run once on every node by srun. An exit code of `REQUEUE_CODE`, or that number as the text of the file
    `verdict`, which counts more, requeues the job; nodes named in the file `excluded` are then excluded too.
    """

    name: str
    command: tuple[str, ...]
    resources: Resources
    folder: Path
    """Working directory."""
    log: Path
    """Without its ending: .JOB.log or .ARRAY_TASK.log is added."""
    verdict: Path
    """Without its ending, which is the job's id. The command may leave a number there, on the first node."""
    excluded: Path
    array: tuple[int, ...] = ()
    """Task numbers; empty for a job that is no array."""
    files: tuple[Path, ...] = ()
    """What must be visible on the first node before the command runs."""
    environment: tuple[str, ...] = ()
    """Lines of bash before those of the profile."""
    program: str = "job"
    """Name before what the script itself prints."""
    resumed_by: str = "submitting it again"
    """What goes on from the work done, where the job cannot be requeued."""

    @property
    def nodes(self) -> int:
        return self.resources.nodes or 1

    def log_of(self, job_id: int, task: int | None = None) -> Path:
        """The log of a job, or of an array's task."""
        number = job_id if task is None else f"{job_id}_{task}"
        return self.log.with_name(f"{self.log.name}.{number}.log")


def ranges(numbers: tuple[int, ...]) -> str:
    """Task numbers as --array has them: 0-4,7,9-11."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
