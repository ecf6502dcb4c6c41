"""Arguments that several commands take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

OVERRIDES_HELP = "KEY=VALUE sets a field of the recipe by its dotted path: recalibration.lr=1e-4"


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the RECIPE argument and the overrides after it."""
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.argument("recipe", type=click.Path(path_type=Path))(command)


def load(recipe: Path, overrides: tuple[str, ...]) -> Any:
    """The recipe with its overrides (a `pipeline.recipe.Recipe`)."""
    from pipeline.recipe import load_recipe

    return load_recipe(recipe, overrides)
