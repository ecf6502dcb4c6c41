"""Arguments that several commands take."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # brings pydantic, which --help does without
    from pipeline.recipe.recipe import Recipe

OVERRIDES_HELP = "KEY=VALUE sets a field of the recipe by its dotted path: recalibration.lr=1e-4"


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the RECIPE argument and the overrides after it."""
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.argument("recipe", type=click.Path(path_type=Path))(command)


def load(recipe: Path, overrides: tuple[str, ...]) -> "Recipe":
    """The recipe with its overrides."""
    from pipeline.recipe.recipe import load_recipe

    return load_recipe(recipe, overrides)


def run_stages(recipe: Path, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Runs the stages (those named in `only`) on this machine and names the page, if there is one."""
    loaded = load(recipe, overrides)
    from pipeline.stages.run import run  # brings torch, which a mistake in the recipe need not wait for

    run(loaded, only)
    page = loaded.folder / "report" / "report.html"
    if page.is_file() and (not only or "report" in only):
        click.echo(f"report: {page.resolve()}")


def checked_task(task: int | None, of: int | None, merge: bool) -> None:
    """Raises: click.UsageError for options of tasks that do not go together."""
    if (task is None) != (of is None) or (merge and task is not None):
        raise click.UsageError("--task I and --of N go together, and without --merge")
    if task is not None and of is not None and task >= of:
        raise click.UsageError(f"--task {task} --of {of}: tasks are counted from 0 to {of - 1}")
