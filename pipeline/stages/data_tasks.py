"""Data preparation as many tasks that know nothing of each other but the run's folder: what a job array calls."""

import logging

from data_prep import prepare
from model_surgery.shape import read_shape
from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.recipe import Recipe, write_recipe
from pipeline.runs.disk import explained_full_disk
from pipeline.runs.folder import LOCK_FILE, RECIPE_FILE, is_complete, refuse_foreign_folder
from pipeline.runs.manifest import Manifest
from pipeline.stages.order import STAGES, tokenizer_path

log = logging.getLogger(__name__)

DATA_STAGE = STAGES[0]


def run_task(recipe: Recipe, task: int, of: int) -> None:
    """Task `task` (0 ... of - 1) of the recipe's data stage: its share of the pieces, in the folder of the run.

    Tasks may run at the same time, on any machines that see the folder, and again after they were killed.

    Raises: RecipeError, SurgeryError or DataError on bad input.
    """
    # Only a complete stage is compared with its inputs here: that reads from all files, and the tasks may be many.
    if Manifest.load(recipe.folder / DATA_STAGE.name) and is_complete(DATA_STAGE, recipe):
        log.info("data is complete; nothing is left for task %d of %d", task, of)
        return
    out_dir = recipe.folder / DATA_STAGE.name
    if not prepare.is_planned(out_dir):
        from pipeline.stages.checks import check_recipe  # slow to import, and of many tasks only the first ones check

        check_recipe(recipe, [DATA_STAGE])
    refuse_foreign_folder(recipe.folder)
    recipe.folder.mkdir(parents=True, exist_ok=True)
    (recipe.folder / LOCK_FILE).touch()  # first of all: it marks the folder as a run's to tasks that start now
    out_dir.mkdir(exist_ok=True)
    write_recipe(recipe, recipe.folder / RECIPE_FILE)
    with explained_full_disk(out_dir):
        done = prepare.work(
            recipe.data,
            tokenizer=tokenizer_path(recipe),
            model_vocab_size=read_shape(resolve_model(recipe.model)).vocab,
            out_dir=out_dir,
            task=task,
            of=of,
            workers=recipe.data.workers,
        )
    log.info("task %d of %d is done: %d pieces", task, of, done)


def check_merge(recipe: Recipe) -> None:
    """Raises: DataError if the tasks have left pieces undone."""
    if not is_complete(DATA_STAGE, recipe):
        prepare.check_merge(recipe.data, tokenizer=tokenizer_path(recipe), out_dir=recipe.folder / DATA_STAGE.name)
