"""Runs a recipe's stages on this machine: skips what is complete, refuses what does not match, goes on after a kill."""

import logging
import shutil
from pathlib import Path

from pipeline.errors import BAD_INPUT, RecipeError
from pipeline.launch.machines import THIS_MACHINE, Machines
from pipeline.launch.signals import stop_if_asked, stopped_by_signals
from pipeline.recipe.recipe import Recipe, write_recipe
from pipeline.runs.disk import explained_full_disk
from pipeline.runs.folder import (
    RECIPE_FILE,
    STARTED_FILE,
    has_progress,
    identify,
    is_complete,
    prepare_folder,
    run_folder,
    save_manifest,
)
from pipeline.runs.manifest import now
from pipeline.stages.checks import check_gpus, check_recipe
from pipeline.stages.order import Stage, stages_of

log = logging.getLogger(__name__)


def run(recipe: Recipe, only: tuple[str, ...] = (), machines: Machines = THIS_MACHINE) -> None:
    """Runs the recipe's stages (or those named in `only`) in order; complete ones are skipped.

    Trainings run on `machines`, all else on this one.

    Raises: RecipeError and the packages' own errors on bad input, StageFailed if a stage's process fails.
    """
    stages = [stage for stage in stages_of(recipe) if not only or stage.name in only]
    if missing := set(only) - {stage.name for stage in stages}:
        raise RecipeError(f"--stage {min(missing)}: this recipe has {', '.join(s.name for s in stages_of(recipe))}")
    pending = [stage for stage in stages if not is_complete(stage, recipe)]
    if pending:
        check_recipe(recipe, pending)
        check_training_gpus(recipe, pending, machines)
        with run_folder(recipe, pending) as folder, stopped_by_signals():
            write_recipe(recipe, folder / RECIPE_FILE)
            for stage in stages:
                # All are looked at again: an input made a moment ago may show that what is there was made from another.
                if not is_complete(stage, recipe):
                    stop_if_asked(stage.name)
                    run_stage(stage, recipe, folder, machines)
    for stage in stages:
        if stage not in pending:
            log.info("%-13s complete, skipped", stage.name)


def check_training_gpus(recipe: Recipe, pending: list[Stage], machines: Machines) -> None:
    """Raises: RecipeError if a training stage is about to run with more processes than there are GPUs."""
    if {stage.name for stage in pending} & {"recalibration", "control"}:
        check_gpus(recipe, machines.slots)


def run_stage(stage: Stage, recipe: Recipe, run_dir: Path, machines: Machines) -> None:
    """One stage from its inputs to its manifest.

    A stage that fails on bad input leaves nothing; one that is cut off leaves what a later attempt goes on with.
    """
    folder = run_dir / stage.name
    identity = identify(stage, recipe)
    prepare_folder(stage, identity, folder)
    started = now()
    log.info("%-13s %s", stage.name, stage.help)
    try:
        with explained_full_disk(folder):
            facts = stage.run(recipe, run_dir, folder, machines)
            save_manifest(stage, identity, folder, started, facts)
    except BAD_INPUT:
        if not stage.resumes or not has_progress(stage, folder):
            shutil.rmtree(folder)
        elif stage.guards_progress:
            # The bad input may be a setting that the progress does not depend on: it may be mended.
            (folder / STARTED_FILE).unlink()
        raise
    seconds = (now() - started).total_seconds()
    log.info("%-13s done in %.0f s", stage.name, seconds)
