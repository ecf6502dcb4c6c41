"""Logs of a run's jobs."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.cluster.folder import JobsFolder, Submitted
from pipeline.cluster.status import status_of
from pipeline.errors import RecipeError


def log_of(run: Path, stage: str | None, task: int | None, node: str | None) -> Path:
    """The log that is asked for; without a stage that of the one which failed or runs, else of the newest job.

    Raises: RecipeError if there is none, naming what there is.
    """
    folder = JobsFolder(run)
    journal = folder.submitted()
    if not journal:
        raise RecipeError(f"{run}: no job of this run was submitted (drope submit RECIPE --cluster C)")
    chosen = [job for job in journal if stage in (None, job.stage, job.part)]
    if not chosen:
        raise RecipeError(
            f"{stage}: no job of it was submitted; there are {', '.join({job.part: 0 for job in journal})}"
        )
    if task is not None:
        path = _log_of_task(chosen, task)
    elif stage is None and (shown := _interesting(run)):
        path = shown
    else:
        path = _newest_log(chosen)
    if node is not None:
        path = path.with_name(f"{path.name.removesuffix('.log')}.{node}.log")
    if not path.is_file():
        there = sorted(file.name for file in folder.logs.glob(f"{chosen[-1].part}.{chosen[-1].job_id}*.log"))
        hint = f"there are {', '.join(there[:10])}" if there else "its jobs have not begun (drope status)"
        raise RecipeError(f"{path}: no such log; {hint}")
    return path


def _interesting(run: Path) -> Path | None:
    """The log of the first stage that failed or runs."""
    for state in ("failed", "lost", "running", "cancelled"):
        for stage in status_of(run).stages:
            if stage.state == state and stage.log and Path(stage.log).is_file():
                return Path(stage.log)
    return None


def _log_of_task(jobs: list[Submitted], task: int) -> Path:
    of_task = [job for job in jobs if task in job.tasks]
    if not of_task:
        known = sorted({number for job in jobs for number in job.tasks})
        there = f"tasks {known[0]} to {known[-1]}" if known else "no job array"
        raise RecipeError(f"--task {task}: {jobs[-1].part} has {there}")
    return of_task[-1].log_file(task - of_task[-1].offset)


def _newest_log(jobs: list[Submitted]) -> Path:
    """Of the jobs' logs the one that was written to last."""
    files = [
        file
        for job in jobs
        for index in ([task - job.offset for task in job.tasks] or [None])
        if (file := job.log_file(index)).is_file()
    ]
    return max(files, key=lambda file: file.stat().st_mtime) if files else jobs[-1].log_file(None)


def follow(path: Path, is_over: Callable[[], bool], seconds: float = 1.0) -> Iterator[str]:
    """What is in a log, and what comes, until `is_over` and nothing more has come."""
    with path.open("r", encoding="utf-8", errors="replace") as file:
        while True:
            over = is_over()
            if text := file.read():
                yield text
            elif over:
                return
            else:
                time.sleep(seconds)
