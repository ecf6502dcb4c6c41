"""`drope job`, which runs inside a job on every node: a stage or a part of it, and the record of how it ended."""

import logging
import os

from pipeline.cluster.allocation.attempts import recorded, refuse_endless
from pipeline.cluster.allocation.bad_nodes import avoid_bad_nodes
from pipeline.cluster.allocation.versions import versions
from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.job_options import JobOptions
from pipeline.errors import BAD_INPUT
from pipeline.launch.patience import patiently, seen
from pipeline.launch.signals import stopped_by_signals
from pipeline.recipe.recipe import Recipe
from pipeline.runs.manifest import MANIFEST_FILE
from pipeline.runs.stage import ArrayStage, Stage
from pipeline.stages.order import stage_named
from pipeline.stages.run import run, run_task
from slurm.step import Step

log = logging.getLogger(__name__)

_MERGE_PATIENCE = 30.0
"""How long what tasks have written may take to be seen; what is still missing then may well not be there, seconds."""


def run_job(recipe: Recipe, options: JobOptions) -> int:
    """This process's share of the job; its exit code.

    Raises: as the stage; Stopped where the job goes on in another allocation.
    """
    step, folder = Step.from_environment(os.environ), JobsFolder(recipe.folder)
    if step.index:
        from pipeline.cluster.allocation.follower import follow

        node_log = folder.logs / f"{options.part}.{step.label}.{step.node}.log"
        return follow(step, token=folder.token, versions=versions(), log_file=node_log)
    with recorded(folder, step, options), stopped_by_signals():
        refuse_endless(folder.attempts(options.part, step.job_id, step.task), options)
        avoid_bad_nodes(folder, step, options)
        stage = stage_named(options.stage)
        await_inputs(recipe, stage)
        if stage.spans_nodes:
            from pipeline.cluster.allocation.training import train

            train(recipe, options, step, folder)
        else:
            do(recipe, stage, options, step)
    return 0


def await_inputs(recipe: Recipe, stage: Stage) -> None:
    """Waits until the manifests of the stages before are seen; SLURM has let this job begin, so they are written.

    A stage that never comes is the stage's own error, which says more.
    """
    for name in stage.needs(recipe):
        if not seen(recipe.folder / name / MANIFEST_FILE):
            log.warning("%s is not seen on this node", recipe.folder / name / MANIFEST_FILE)


def do(recipe: Recipe, stage: Stage, options: JobOptions, step: Step) -> None:
    """A stage, or its tasks or merge, on this node alone."""
    if isinstance(stage, ArrayStage) and options.does == "tasks":
        run_task(stage, recipe, (step.task or 0) + options.offset, options.of)
        return
    if isinstance(stage, ArrayStage) and options.does == "merge":
        await_tasks(recipe, stage)
    run(recipe, (stage.name,))


def await_tasks(recipe: Recipe, stage: ArrayStage) -> None:
    """Waits until all that the tasks have made is seen.

    Raises: RecipeError or a package's own error if something is missing that the merge cannot do itself.
    """
    try:
        patiently(lambda: stage.check_merge(recipe), *BAD_INPUT, seconds=_MERGE_PATIENCE)
    except BAD_INPUT as error:
        if not stage.merge_finishes:
            raise
        log.info("%s", error)
        log.info("the rest is done here")
