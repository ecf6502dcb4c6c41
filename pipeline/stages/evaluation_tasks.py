"""The evaluation as many tasks that know nothing of each other but the run's folder: what a job array calls."""

import logging
from pathlib import Path

from eval import run as evaluation
from pipeline.recipe.recipe import Recipe
from pipeline.runs.disk import explained_full_disk
from pipeline.runs.folder import identify, is_complete, mark_begun
from pipeline.stages.order import STAGES, evaluated_models

log = logging.getLogger(__name__)

EVALUATION_STAGE = next(stage for stage in STAGES if stage.name == "evaluation")


def run_task(recipe: Recipe, task: int, of: int) -> None:
    """Task `task` (0 ... of - 1) of the recipe's evaluation: its share of the cells variant x task x length.

    Raises: RecipeError if the stages before it are not complete; EvaluationError.
    """
    if is_complete(EVALUATION_STAGE, recipe):
        log.info("evaluation is complete; nothing is left for task %d of %d", task, of)
        return
    out_dir = folder_of(recipe)
    mark_begun(identify(EVALUATION_STAGE, recipe), out_dir)
    with explained_full_disk(out_dir):
        done = evaluation.run_task(
            recipe.evaluation, models=evaluated_models(recipe, recipe.folder), out_dir=out_dir, task=task, of=of
        )
    log.info("task %d of %d is done: %d units", task, of, done)


def check_merge(recipe: Recipe) -> None:
    """Raises: RecipeError if the stages before it are not complete; EvaluationError if units are not scored."""
    if not is_complete(EVALUATION_STAGE, recipe):
        identify(EVALUATION_STAGE, recipe)
        models = evaluated_models(recipe, recipe.folder)
        evaluation.check_merge(recipe.evaluation, models=models, out_dir=folder_of(recipe))


def folder_of(recipe: Recipe) -> Path:
    return recipe.folder / EVALUATION_STAGE.name
