"""Which log of a run's jobs is meant."""

from pathlib import Path

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.records import Submitted
from pipeline.cluster.status.run_status import status_of
from pipeline.errors import RecipeError


def log_of(run: Path, stage: str | None, task: int | None, node: str | None) -> Path:
    """The log that is asked for; without a stage that of the one which failed or runs, else of the newest job.

    stage: a stage, or the name of a stage job. Raises: RecipeError if there is none, naming what there is.
    """
    folder = JobsFolder(run)
    jobs = _jobs_of(folder, stage)
    if task is not None:
        path = _log_of_task(jobs, task)
    elif stage is None and (log := _log_of_interest(run)):
        path = log
    else:
        path = _newest_log(jobs)
    if node is not None:
        path = path.with_name(f"{path.name.removesuffix('.log')}.{node}.log")
    if not path.is_file():
        present = sorted(file.name for file in folder.logs.glob(f"{jobs[-1].part}.{jobs[-1].job_id}*.log"))
        hint = f"there are {', '.join(present[:10])}" if present else "its jobs have not begun (drope status)"
        raise RecipeError(f"{path}: no such log; {hint}")
    return path


def _jobs_of(folder: JobsFolder, stage: str | None) -> list[Submitted]:
    """The jobs that were submitted for a stage; None: for any."""
    journal = folder.submitted()
    if not journal:
        raise RecipeError(f"{folder.run}: no job of this run was submitted (drope submit RECIPE --cluster C)")
    jobs = [job for job in journal if stage in (None, job.stage, job.part)]
    if not jobs:
        known = ", ".join(dict.fromkeys(job.part for job in journal))
        raise RecipeError(f"{stage}: no job of it was submitted; there are {known}")
    return jobs


def _log_of_interest(run: Path) -> Path | None:
    """The log of the first stage that failed or runs."""
    stages = status_of(run).stages
    for state in ("failed", "lost", "running", "cancelled"):
        for stage in stages:
            if stage.state == state and stage.log and Path(stage.log).is_file():
                return Path(stage.log)
    return None


def _log_of_task(jobs: list[Submitted], task: int) -> Path:
    of_task = [job for job in jobs if task in job.tasks]
    if not of_task:
        known = sorted({number for job in jobs for number in job.tasks})
        present = f"tasks {known[0]} to {known[-1]}" if known else "no job array"
        raise RecipeError(f"--task {task}: {jobs[-1].part} has {present}")
    return of_task[-1].log_file(task - of_task[-1].offset)


def _newest_log(jobs: list[Submitted]) -> Path:
    """Of the jobs' logs the one that was written to last."""
    files = [file for job in jobs for index in job.indices if (file := job.log_file(index)).is_file()]
    return max(files, key=lambda file: file.stat().st_mtime) if files else jobs[-1].log_file(None)
