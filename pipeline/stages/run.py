"""Running a recipe's stages, or a task of one."""

from pipeline.errors import RecipeError
from pipeline.launch.machines import THIS_MACHINE, Machines
from pipeline.recipe.recipe import Recipe
from pipeline.runs.local import run_stages
from pipeline.runs.stage import ArrayStage
from pipeline.stages.checks import check_recipe
from pipeline.stages.order import stages_of


def run(recipe: Recipe, only: tuple[str, ...] = (), machines: Machines = THIS_MACHINE) -> None:
    """Runs the recipe's stages (or those named in `only`) in order; complete ones are skipped.

    Trainings run on `machines`, all else on this one.

    Raises: RecipeError and the packages' own errors on bad input, StageFailed if a stage's process fails, Stopped.
    """
    known = stages_of(recipe)
    if missing := set(only) - {stage.name for stage in known}:
        raise RecipeError(f"--stage {min(missing)}: this recipe has {', '.join(stage.name for stage in known)}")
    stages = [stage for stage in known if not only or stage.name in only]
    run_stages(recipe, stages, check=check_recipe, machines=machines)


def run_task(stage: ArrayStage, recipe: Recipe, task: int, of: int) -> None:
    """Task `task` (0 ... of - 1) of the stage, in the folder of the run.

    Raises: RecipeError and the packages' own errors on bad input.
    """
    stage.run_task(recipe, task, of, check=lambda: check_recipe(recipe, [stage]))
