"""Ending a run's jobs, and no other's."""

from pathlib import Path

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.recipe_copies import recipe_of
from pipeline.cluster.records import JobNames
from pipeline.errors import RecipeError
from slurm import client


def cancel(run: Path, stage: str | None = None) -> list[int]:
    """Ends the run's jobs that wait or run, or only those of a stage; their numbers.

    They are found by their names, which hold what no other run's have, so that a job which a submit could not write
    down any more ends too.

    Raises: RecipeError if nothing was submitted, or there is no such stage; SlurmError, SlurmUnreachable.
    """
    folder = JobsFolder(run)
    names = JobNames(recipe_of(run).name, folder.label)
    known = {job.part: job.stage for job in folder.submitted()}
    if stage is not None and stage not in {*known, *known.values()}:
        raise RecipeError(f"{stage}: no job of it was submitted; there are {', '.join(known)}")
    active = [state for state in client.listed(names.are_ours) if state.is_active]
    chosen = [
        state.job_id
        for state in active
        if stage in (None, names.read(state.name)[0], known.get(names.read(state.name)[0]))
    ]
    numbers = sorted(set(chosen), reverse=True)  # the last ones first: none is to begin because one before it ends
    client.cancel([str(number) for number in numbers])
    return numbers[::-1]
