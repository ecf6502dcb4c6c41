"""The resolved recipes that a run's jobs were submitted with; one that is submitted later does not change them."""

import hashlib
from pathlib import Path

from pipeline.cluster.folder import JobsFolder
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe, load_recipe, write_recipe
from pipeline.runs.folder import RECIPE_FILE


def copy_path(recipe: Recipe, folder: JobsFolder) -> Path:
    """Where the jobs of a submission find its recipe."""
    return folder.recipe(hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()).absolute()


def write_copy(recipe: Recipe, folder: JobsFolder) -> None:
    """Writes the recipe there, if it is not there already."""
    path = copy_path(recipe, folder)
    if not path.is_file():
        write_recipe(recipe, path)


def recipe_of(run: Path) -> Recipe:
    """The recipe of a run that may not have begun: as it was submitted or as a stage wrote it, whichever is newer.

    Raises: RecipeError if there is none.
    """
    copies = [*JobsFolder(run).path.glob("recipe-*.yaml"), *run.glob(RECIPE_FILE)]
    if not copies:
        raise RecipeError(f"{run}: holds no recipe")
    return load_recipe(max(copies, key=lambda path: path.stat().st_mtime))
