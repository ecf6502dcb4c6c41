"""Runs stages on this machine: skips what is complete, refuses what does not match, goes on after a kill."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import BAD_INPUT
from pipeline.launch.machines import Machines
from pipeline.launch.signals import stop_if_asked, stopped_by_signals
from pipeline.recipe.recipe import Recipe, write_recipe
from pipeline.runs.folder import (
    RECIPE_FILE,
    STARTED_FILE,
    explained_full_run_disk,
    has_progress,
    identify,
    is_complete,
    prepare_folder,
    run_folder,
    save_manifest,
)
from pipeline.runs.manifest import now
from pipeline.runs.stage import Stage

log = logging.getLogger(__name__)


def run_stages(
    recipe: Recipe, stages: Sequence[Stage], *, check: Callable[[Recipe, Sequence[Stage]], None], machines: Machines
) -> None:
    """Runs the stages in order; complete ones are skipped.

    check: all that can be checked before work, given the stages that are about to run.

    Raises: RecipeError and the packages' own errors on bad input, StageFailed if a stage's process fails, Stopped.
    """
    pending = [stage for stage in stages if not is_complete(stage, recipe)]
    if pending:
        check(recipe, pending)
        for stage in pending:
            stage.check_machines(recipe, machines)
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
        with explained_full_run_disk(folder):
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
