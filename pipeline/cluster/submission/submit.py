"""`drope submit`: a run as a chain of jobs; what is complete, or on its way, is left alone."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster.excluded_nodes import readmit
from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.profiles import StageProfile
from pipeline.cluster.recipe_copies import write_copy
from pipeline.cluster.records import JobNames, Submitted
from pipeline.cluster.resources import resources_of
from pipeline.cluster.submission.chain import Chain, dependencies, plan_chain, refuse_missing_needs
from pipeline.cluster.submission.lock import only_one
from pipeline.cluster.submission.queue import Queue, ask_queue, record_of
from pipeline.cluster.submission.request import Request, checked_request
from pipeline.cluster.submission.scripts import Script
from pipeline.recipe.recipe import Recipe
from pipeline.runs.folder import LOCK_FILE, refuse_foreign_folder
from slurm import client

log = logging.getLogger(__name__)

_DEFAULT_ARRAY_SIZE = 1001
"""SLURM's own default of MaxArraySize; indices lie below it."""
_UNKNOWN_LABEL = "xxxxxxxx"
"""In a dry run before the first submission, which draws it."""


@dataclass(frozen=True)
class Submission:
    """What a submit has done."""

    complete: tuple[str, ...]
    """Stages that were complete."""
    kept: dict[str, list[Submitted]]
    """Jobs that waited or ran already, by name of the stage job."""
    submitted: list[Submitted]


def submit(recipe: Recipe, profile: StageProfile, *, first: str | None, last: str | None) -> Submission:
    """Submits the stages from `first` to `last` that are neither complete nor on their way.

    All scripts are written to RUN/jobs/scripts, and SLURM is asked of each whether it could ever run, before the first
    one is submitted. Jobs accepted before an error are kept, and found again.

    Raises: RecipeError and the packages' errors on bad input, SlurmError in sbatch's words, SlurmUnreachable.
    """
    request = checked_request(recipe, profile, first, last)
    client.require_sbatch("to run here: drope run RECIPE")
    with claimed(recipe) as folder:
        names = JobNames(recipe.name, folder.label)
        queue = ask_queue(folder, names, request.jobs_of_run)
        refuse_missing_needs(request, {job.part for job in queue.jobs})
        chain = plan_chain(request, folder, names, queue, _array_size())
        write_scripts(request, chain, folder)
        for script in chain.scripts:
            client.check(script.path, script.stage_job.name, script.job.resources)
        make_way(request, chain, queue, folder)
        return Submission(request.complete, chain.kept, submit_scripts(chain, queue, folder, names))


def planned_scripts(recipe: Recipe, profile: StageProfile, *, first: str | None, last: str | None) -> list[Script]:
    """What `submit` would submit; nothing is written, and SLURM is not asked what is on its way.

    Raises: RecipeError and the packages' errors on bad input.
    """
    request = checked_request(recipe, profile, first, last)
    folder = JobsFolder(recipe.folder)
    names = JobNames(recipe.name, folder.label if folder.exists else _UNKNOWN_LABEL)
    refuse_missing_needs(request, {job.part for job in folder.submitted()})
    return plan_chain(request, folder, names, Queue(), _array_size()).scripts


@contextmanager
def claimed(recipe: Recipe) -> Iterator[JobsFolder]:
    """The folder of the run's jobs, made if need be and held against other submits.

    A run's folder that is new is removed again if an error comes before a script is written.

    Raises: RecipeError if it is something else's folder, or another submit of this run is under way.
    """
    refuse_foreign_folder(recipe.folder)
    folder = JobsFolder(recipe.folder)
    is_new = not recipe.folder.exists()
    recipe.folder.mkdir(parents=True, exist_ok=True)
    (recipe.folder / LOCK_FILE).touch()  # marks the folder as a run's
    folder.make()
    with only_one(folder.lock, f"drope submit of {recipe.name}"):
        try:
            yield folder
        except Exception:
            if is_new and not any(folder.scripts.iterdir()):
                remove_at_once(recipe.folder)
            raise


def remove_at_once(folder: Path) -> None:
    """Removes a folder; what begins meanwhile finds none, not a half of it."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
    folder.rename(aside)
    shutil.rmtree(aside)


def write_scripts(request: Request, chain: Chain, folder: JobsFolder) -> None:
    """Writes the scripts, and the recipe that they name."""
    write_copy(request.recipe, folder)
    for script in chain.scripts:
        script.path.write_text(script.text, encoding="utf-8")


def make_way(request: Request, chain: Chain, queue: Queue, folder: JobsFolder) -> None:
    """Ends jobs that are replaced; lets trainings that wait use nodes again where too few others are up."""
    for job in chain.replaced:
        log.info("%s: job %d waited for what begins anew; it is replaced", job.part, job.job_id)
    client.cancel([str(job.job_id) for job in chain.replaced])
    for stage_job in request.jobs:
        kept = chain.kept.get(stage_job.name, [])
        if stage_job.spans_nodes and kept and queue.is_pending(kept[-1]):
            resources = resources_of(stage_job, request.recipe, request.profile)
            if again := readmit(folder, stage_job.name, kept[-1].job_id, resources):
                log.warning(
                    "%s: too few nodes are up without %s; the job may use it again", stage_job.name, ", ".join(again)
                )


def submit_scripts(chain: Chain, queue: Queue, folder: JobsFolder, names: JobNames) -> list[Submitted]:
    """Submits one script after the other, and writes down each job as soon as SLURM has accepted it."""
    submitted: list[Submitted] = []
    for script in chain.scripts:
        stage_job, exclude = script.stage_job, script.job.resources.exclude
        after = dependencies(stage_job, submitted, queue, chain.replaced)
        folder.excluded(stage_job.name).write_text(f"{exclude}\n" if exclude else "", encoding="utf-8")
        known = {state.job_id for state in queue.states} | {job.job_id for job in folder.submitted()}
        accepted = _newly_accepted(names.write(stage_job.name, script.offset), known)
        job_id = client.submit(script.path, after, accepted=accepted)
        record = record_of(stage_job, job_id, folder, names, after=after, tasks=script.tasks, offset=script.offset)
        folder.add(record)
        submitted.append(record)
    return submitted


def _newly_accepted(name: str, known: set[int]) -> Callable[[], int | None]:
    """Looks for a job of this name that SLURM has although its answer did not come; not one of those `known`."""
    return lambda: min({state.job_id for state in client.listed(lambda other: other == name)} - known, default=None)


def _array_size() -> int:
    return int(client.setting("MaxArraySize", str(_DEFAULT_ARRAY_SIZE)))
