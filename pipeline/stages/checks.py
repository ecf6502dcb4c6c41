"""Every refusal that is possible before any work: what `drope plan` shows and `drope run` starts with."""

from collections.abc import Sequence
from typing import Literal

from eval.config import OF_THE_SOURCE
from model_surgery.files import read_json
from model_surgery.shape import ModelShape, source_position_embedding
from pipeline.errors import RecipeError
from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.recipe import Recipe
from pipeline.runs.stage import Stage
from pipeline.stages.order import stages_of


def check_shapes(recipe: Recipe, shape: ModelShape) -> None:
    """What follows from the recipe and the source's shape alone, for all of the recipe's stages.

    Raises: RecipeError or SurgeryError.
    """
    for stage in stages_of(recipe):
        stage.check_settings(recipe, shape)


def check_recipe(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """All that `check_shapes` checks, then for the stages about to run their checkpoint, documents and tasks.

    A checkpoint that only the Hub has is downloaded for it.

    Raises: RecipeError, SurgeryError, DataError or EvaluationError.
    """
    from pipeline.recipe.random_model import source_shape

    shape = source_shape(recipe)
    check_shapes(recipe, shape)
    config = read_json(resolve_model(recipe.model) / "config.json")
    check_position_embedding(recipe, source_position_embedding(config))
    for stage in stages:
        stage.check(recipe, shape)
    if len(stages) == 1:
        stages[0].check_inputs(recipe)


def check_position_embedding(recipe: Recipe, of_source: Literal["rope", "none"]) -> None:
    """Raises: RecipeError if the recipe wants something with RoPE from a source that has none, as DroPE models have."""
    if of_source == "rope":
        return
    training = recipe.recalibration
    wants_rope = {
        "control = true": training.control,
        "position_embedding = rope": training.position_embedding == "rope",
        f"drop_at_step = {training.drop_at_step}": training.drop_at_step is not None,
    }
    if field := next((field for field, is_set in wants_rope.items() if is_set), None):
        raise RecipeError(f"recalibration.{field}: {recipe.model.path} has no RoPE that could be kept; take it out")
    if scaled := [variant for variant in recipe.evaluation.variants if variant in OF_THE_SOURCE]:
        raise RecipeError(
            f"evaluation.variants has {scaled[0]}: {recipe.model.path} has no RoPE; use drope and drope_scaled alone"
        )
