"""What submitting comes to: which jobs are submitted, which are on their way, which begin anew; nothing is done yet."""

from collections.abc import Collection
from dataclasses import dataclass

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.records import JobNames, Submitted
from pipeline.cluster.stage_jobs import MERGE, StageJob
from pipeline.cluster.submission.queue import Queue
from pipeline.cluster.submission.request import Request
from pipeline.cluster.submission.scripts import Script, script_of
from pipeline.errors import RecipeError


@dataclass(frozen=True)
class Chain:
    """A submission before anything of it is done."""

    kept: dict[str, list[Submitted]]
    """Jobs that wait or run already, by name of the stage job."""
    replaced: list[Submitted]
    """Jobs that wait for one that begins anew: they could never begin."""
    scripts: list[Script]
    """What is to be submitted, in order."""


def plan_chain(request: Request, folder: JobsFolder, names: JobNames, queue: Queue, array_size: int) -> Chain:
    """Decides about every job that was asked for, in order.

    array_size: most tasks that SLURM takes in one array.
    """
    chain = Chain({}, [], [])
    anew: set[str] = set()
    for stage_job in request.jobs:
        name = stage_job.name
        stuck = [job for job in queue.of(name) if not queue.has_begun(job)] if anew & {*stage_job.needs} else []
        chain.replaced.extend(stuck)
        if kept := [job for job in queue.of(name) if job not in stuck]:
            chain.kept[name] = kept
        scripts: list[Script] = []
        if stage_job.is_array:
            tasks = [task for task in stage_job.undone_tasks(request.recipe) if task not in queue.tasks_of(kept)]
            for offset, indices in arrays_of(tasks, array_size).items():
                scripts.append(script_of(request, stage_job, folder, names, indices=indices, offset=offset))
        elif not kept:
            scripts.append(script_of(request, stage_job, folder, names))
        if scripts:
            chain.scripts.extend(scripts)
            anew.add(name)
    return chain


def arrays_of(tasks: list[int], size: int) -> dict[int, list[int]]:
    """Tasks as SLURM's arrays, whose indices lie below `size`: offset and indices of each."""
    arrays: dict[int, list[int]] = {}
    for task in tasks:
        offset = task // size * size
        arrays.setdefault(offset, []).append(task - offset)
    return arrays


def refuse_missing_needs(request: Request, on_their_way: Collection[str]) -> None:
    """Raises: RecipeError if a stage before those asked for is neither complete nor on its way."""
    known = {job.name for job in request.jobs}.union(on_their_way)
    for stage_job in request.jobs:
        for need in stage_job.needs:
            if need not in known:
                raise RecipeError(
                    f"--from {request.jobs[0].stage.name}: stage {stage_job.stage.name} needs stage "
                    f"{need.removesuffix(MERGE)}, which is not complete"
                )


def dependencies(stage_job: StageJob, submitted: list[Submitted], queue: Queue, replaced: list[Submitted]) -> str:
    """What a job waits for, as sbatch takes it. submitted: the jobs before it that have just been accepted.

    Of an array that was there before, some tasks may have failed and run again in a new one: it only has to end.
    """
    clauses = []
    for need in stage_job.needs:
        fresh = [job.job_id for job in submitted if job.part == need]
        earlier = [job.job_id for job in queue.of(need) if job not in replaced]
        clauses += [f"afterok:{job_id}" for job_id in fresh]
        clauses += [f"{'afterany' if fresh else 'afterok'}:{job_id}" for job_id in earlier]
    return ",".join(clauses)
