"""A training on all nodes of a job."""

import logging

from pipeline.cluster.allocation.bad_nodes import Elsewhere, leave_out
from pipeline.cluster.allocation.head import Head
from pipeline.cluster.allocation.versions import versions
from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.job_options import JobOptions
from pipeline.cluster.spread import fitting_data_parallel, usable_slots
from pipeline.errors import REQUEUE, RecipeError, StageFailed, exit_code
from pipeline.recipe.recipe import Recipe
from pipeline.stages.run import run
from slurm.step import Step

log = logging.getLogger(__name__)


def train(recipe: Recipe, options: JobOptions, step: Step, folder: JobsFolder) -> None:
    """Runs the stage with its ranks on all nodes.

    Raises: Elsewhere if nodes went away, which the job then does without; as the stage.
    """
    per_node = usable_slots(options.per_node, recipe.surgery.tensor_parallel)
    head = Head(step, token=folder.token, per_node=per_node, versions=versions())
    try:
        with head:
            try:
                run(fitted(recipe, head.slots), (options.stage,), machines=head)
                head.verdict = 0
            except Exception as error:
                head.verdict = REQUEUE if head.lost else exit_code(error) or 1
                raise
    except StageFailed as error:
        if not head.lost:
            raise
        leave_out(folder, options, head.lost)
        raise Elsewhere(f"{error}; the job goes on without") from error


def fitted(recipe: Recipe, slots: int) -> Recipe:
    """The recipe with as many data-parallel ranks as there is room for, if it asks for more.

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
