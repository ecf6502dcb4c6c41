"""Every refusal that is possible before any work: what `drope plan` shows and `drope run` starts with."""

from data_prep.prepare import held_out_fraction
from pipeline.errors import RecipeError
from pipeline.model_source import plan_shape, resolve_model
from pipeline.recalibration.run import check_schedule
from pipeline.recipe import Recipe
from pipeline.stages import Stage, evaluated_models, tokenizer_path


def check_shapes(recipe: Recipe) -> None:
    """What follows from the recipe and the model's shape alone; reads no weights and no documents.

    Raises: RecipeError or SurgeryError.
    """
    shape, _ = plan_shape(recipe.model)
    shape.check_tensor_parallel(recipe.surgery.tensor_parallel, recipe.model.path)
    check_schedule(recipe.recalibration, recipe.data.row_length)
    if recipe.data.row_length > shape.context:
        raise RecipeError(
            f"data.row_length = {recipe.data.row_length}: {recipe.model.path} has a context of {shape.context} tokens; "
            "recalibration trains at the original context length or below"
        )
    if not any(held_out_fraction(source, recipe.data) for source in recipe.data.sources):
        raise RecipeError(
            "data.validation_fraction = 0: validation and evaluation need held-out documents; use 0.01, or a source "
            "with split: validation"
        )
    if "control" in recipe.evaluation.variants and not recipe.recalibration.control:
        raise RecipeError("evaluation.variants has control, which needs recalibration.control = true")


def check_recipe(recipe: Recipe, stages: list[Stage]) -> None:
    """All that `check_shapes` checks, then for the stages about to run their checkpoint, documents and tasks.

    Raises: RecipeError, SurgeryError, DataError or EvaluationError.
    """
    check_shapes(recipe)
    names = {stage.name for stage in stages}
    if "surgery" in names:
        from model_surgery import convert

        convert.check(recipe.surgery, resolve_model(recipe.model))
    if "data" in names:
        from data_prep import prepare

        shape, _ = plan_shape(recipe.model)
        prepare.check(recipe.data, tokenizer=tokenizer_path(recipe), model_vocab_size=shape.vocab)
    if names == {"evaluation"}:
        from eval import run as evaluation

        evaluation.check(recipe.evaluation, evaluated_models(recipe, recipe.folder))
