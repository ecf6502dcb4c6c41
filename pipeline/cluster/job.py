"""What runs inside a job: one part of a run, from the node's first look to the record of its end."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pipeline.cluster.folder import Attempt, Attempts, JobsFolder
from pipeline.cluster.nodes import exclude, suspects, versions
from pipeline.cluster.spread import fitting_data_parallel, usable_slots
from pipeline.errors import BAD_INPUT, REQUEUE, OutOfTime, RecipeError, StageFailed, Stopped, exit_code
from pipeline.launch.patience import patiently, seen
from pipeline.launch.signals import stopped_by_signals
from pipeline.recipe.recipe import Recipe
from pipeline.runs.manifest import MANIFEST_FILE, now
from pipeline.runs.stage import ArrayStage, Stage
from pipeline.stages.order import stage_named
from pipeline.stages.run import run, run_task
from slurm.step import Step, node_names

log = logging.getLogger(__name__)

_MERGE_PATIENCE = 30.0
"""How long what tasks have written may take to be seen; what is still missing then may well not be there, seconds."""


@dataclass(frozen=True)
class Work:
    """What a job of a run is there for."""

    stage: str
    does: Literal["all", "tasks", "merge"]
    part: str
    of: int
    """Number of tasks."""
    offset: int
    """Number of a task less its index in SLURM's array."""
    per_node: int
    """Processes of a training on every node."""
    nodes_min: int
    barren: int
    """Allocations in a row that may bring nothing."""
    exclude: str = ""
    """Nodes that the profile never uses, as SLURM writes them."""


class Elsewhere(Stopped):
    """The job can go on at once, but not on these nodes."""


def run_job(recipe: Recipe, work: Work) -> int:
    """This process's share of the job; its exit code.

    Raises: as the stage; Stopped where the job goes on in another allocation.
    """
    step, folder = Step.from_environment(os.environ), JobsFolder(recipe.folder)
    if step.index:
        from pipeline.cluster.follower import follow

        node_log = folder.logs / f"{work.part}.{step.label}.{step.node}.log"
        return follow(step, token=folder.token, versions=versions(), log_file=node_log)
    with recorded(folder, step, work), stopped_by_signals():
        refuse_endless(folder.attempts(work.part, step.job_id, step.task), work)
        avoid_bad_nodes(folder, step, work)
        stage = stage_named(work.stage)
        await_inputs(recipe, stage)
        if stage.spans_nodes:
            train(recipe, work, step, folder)
        else:
            do(recipe, stage, work, step)
    return 0


def do(recipe: Recipe, stage: Stage, work: Work, step: Step) -> None:
    """A stage, or its tasks or merge, on this node alone."""
    if isinstance(stage, ArrayStage) and work.does == "tasks":
        run_task(stage, recipe, (step.task or 0) + work.offset, work.of)
        return
    if isinstance(stage, ArrayStage) and work.does == "merge":
        try:
            patiently(lambda: stage.check_merge(recipe), *BAD_INPUT, seconds=_MERGE_PATIENCE)
        except BAD_INPUT as error:
            if not stage.merge_finishes:
                raise
            log.info("%s", error)
            log.info("the rest is done here")
    run(recipe, (work.stage,))


def train(recipe: Recipe, work: Work, step: Step, folder: JobsFolder) -> None:
    """A training on all nodes of the job."""
    from pipeline.cluster.head import Head

    per_node = usable_slots(work.per_node, recipe.surgery.tensor_parallel)
    head = Head(step, token=folder.token, per_node=per_node, versions=versions())
    try:
        with head:
            try:
                run(fitted(recipe, head.slots), (work.stage,), machines=head)
                head.verdict = 0
            except Exception as error:
                head.verdict = REQUEUE if head.lost else exit_code(error) or 1
                raise
    except StageFailed as error:
        if not head.lost:
            raise
        leave_out(folder, work, head.lost)
        raise Elsewhere(f"{error}; the job goes on without") from error


def fitted(recipe: Recipe, slots: int) -> Recipe:
    """The recipe with as many data-parallel ranks as there is room for, if it wants more.

    Raises: RecipeError if not even one fits.
    """
    training, tensor_parallel = recipe.recalibration, recipe.surgery.tensor_parallel
    if slots < tensor_parallel:
        raise RecipeError(
            f"surgery.tensor_parallel = {tensor_parallel}: the job's nodes have room for {slots} processes"
        )
    if training.data_parallel == "auto":
        return recipe
    rows = training.batch // (1 if training.micro_batch == "auto" else training.micro_batch)
    ranks = fitting_data_parallel(training.data_parallel, rows=rows, slots=slots, tensor_parallel=tensor_parallel)
    if ranks == training.data_parallel:
        return recipe
    log.warning("room for %d processes: %d data-parallel ranks instead of %d", slots, ranks, training.data_parallel)
    changed = training.model_copy(update={"data_parallel": ranks})
    return recipe.model_copy(update={"recalibration": changed})


@contextmanager
def recorded(folder: JobsFolder, step: Step, work: Work) -> Iterator[None]:
    """Leaves a record of this allocation, and the verdict for the script that runs this.

    A time limit in which nothing was finished is made a failure: it would be so again and again.
    """
    before = folder.attempts(work.part, step.job_id, step.task)
    stage, stage_dir = stage_named(work.stage), folder.run / work.stage
    reached = stage.progress(stage_dir)
    attempt = Attempt(restarts=step.restarts, nodes=step.nodes, started=now(), progress=reached)
    folder.write_attempts(_with(before, attempt))
    code, message = 1, "ended by an error that it did not foresee; see its log"
    try:
        try:
            yield
            code, message = 0, ""
        except OutOfTime as error:
            if stage.progress(stage_dir) == reached:
                raise StageFailed(
                    f"{error}; nothing was finished in this allocation, so the job is not requeued: give it more time "
                    "(time, restarts.warning_seconds in the cluster profile), or let checkpoints come sooner"
                ) from error
            raise
    except SystemExit as error:
        code, message = int(error.code or 0), ""
        raise
    except BaseException as error:
        code, message = exit_code(error) or 1, " ".join(str(error).split()) or type(error).__name__
        raise
    finally:
        ended = attempt.model_copy(update={"ended": now(), "code": code, "message": message})
        folder.write_attempts(_with(before, ended))
        (folder.verdicts / f"{work.part}.{step.own_id}").write_text(f"{code}\n")


def _with(before: Attempts, attempt: Attempt) -> Attempts:
    return before.model_copy(update={"attempts": (*before.attempts, attempt)})


def refuse_endless(attempts: Attempts, work: Work) -> None:
    """Raises: StageFailed if this job was restarted again and again without coming further.

    The last of `attempts` is the present one.
    """
    *earlier, present = attempts.attempts
    barren = 0
    for attempt in reversed(earlier):
        if attempt.progress != present.progress:
            break
        barren += 1
    if barren >= work.barren:
        raise StageFailed(
            f"{barren} allocations in a row brought nothing (progress {present.progress}): the job ends; the logs say "
            "why; drope submit begins anew"
        )


def avoid_bad_nodes(folder: JobsFolder, step: Step, work: Work) -> None:
    """Raises: Elsewhere if this allocation has a node on which the last one died, and there are enough others."""
    *earlier, _ = folder.attempts(work.part, step.job_id, step.task).attempts
    if not earlier or earlier[-1].ended is not None:
        return
    bad = suspects(earlier[-1].nodes, earlier[-1].started)
    if not bad:
        return
    excluded = leave_out(folder, work, bad)
    if used := sorted(set(step.nodes) & set(excluded)):
        raise Elsewhere(f"{', '.join(used)} failed under the last allocation; the job goes on without")


def leave_out(folder: JobsFolder, work: Work, nodes: Sequence[str]) -> tuple[str, ...]:
    """Has the job not use these nodes again, if there are enough others; all that it does not use."""
    always = node_names(work.exclude) if work.exclude else ()
    return exclude(folder, work.part, nodes, nodes_min=work.nodes_min, always=always)


def await_inputs(recipe: Recipe, stage: Stage) -> None:
    """Waits until the manifests of the stages before are seen; SLURM has let this job begin, so they are written.

    A stage that never comes is the stage's own error, which says more.
    """
    for name in stage.needs(recipe):
        if not seen(recipe.folder / name / MANIFEST_FILE):
            log.warning("%s is not seen on this node", recipe.folder / name / MANIFEST_FILE)
