"""Which tasks of an array have something left to do, from what lies on the disk."""

from pipeline.recipe.recipe import Recipe
from pipeline.runs.manifest import Manifest
from pipeline.stages.order import evaluated_models, tokenizer_path


def undone_tasks(recipe: Recipe, stage: str, of: int) -> list[int]:
    """Numbers of the tasks, of `of`, that are not done; all where that cannot be known yet.

    Raises: DataError or EvaluationError as the stage.
    """
    folder = recipe.folder / stage
    if stage == "data":
        from data_prep import prepare

        return prepare.undone_tasks(recipe.data, tokenizer=tokenizer_path(recipe), out_dir=folder, of=of)
    inputs = (Manifest.load(recipe.folder / name) for name in ("data", "export"))
    if not folder.is_dir() or not all(inputs):
        return list(range(of))
    from eval import run as evaluation

    return evaluation.undone_tasks(
        recipe.evaluation, models=evaluated_models(recipe, recipe.folder), out_dir=folder, of=of
    )
