"""Every refusal that is possible before any work: what `drope plan` shows and `drope run` starts with."""

from pathlib import Path
from typing import Literal

from eval.config import OF_THE_SOURCE, EvaluationConfig
from model_surgery.export.formats import format_of
from model_surgery.files import read_json
from model_surgery.qk_norm import with_qk_norm
from model_surgery.shape import ModelShape, source_position_embedding
from pipeline.errors import RecipeError
from pipeline.recalibration.layer_agreement import device_to_plan_for
from pipeline.recalibration.layer_choice import LayerChoice, choose
from pipeline.recalibration.schedule import check_schedule
from pipeline.recalibration.wandb_sync import check_wandb
from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.random_model import check_source, check_untrained, source_shape
from pipeline.recipe.recipe import Recipe
from pipeline.report.published import published_rows
from pipeline.stages.order import Stage, evaluated_models, tokenizer_folder, tokenizer_path


def check_shapes(recipe: Recipe, shape: ModelShape) -> None:
    """What follows from the recipe and the model's shape alone; reads no weights and no documents.

    Raises: RecipeError or SurgeryError.
    """
    shape.check_tensor_parallel(recipe.surgery.tensor_parallel, recipe.model.path)
    check_schedule(recipe.recalibration, recipe.data.row_length)
    if recipe.data.row_length > shape.context:
        raise RecipeError(
            f"data.row_length = {recipe.data.row_length}: {recipe.model.path} has a context of {shape.context} tokens; "
            "recalibration trains at the original context length or below"
        )
    if not any(recipe.data.held_out_fraction(source) for source in recipe.data.sources):
        raise RecipeError(
            "data.validation_fraction = 0: validation and evaluation need held-out documents; use 0.01, or a source "
            "with split: validation"
        )
    layer_choice(recipe, shape)
    check_wandb(recipe.recalibration.wandb_project)
    published_rows(recipe)
    trained = trained_shape(recipe, shape)
    format_of(trained, recipe.recalibration.position_embedding, recipe.export)  # now, not when training is over
    if "control" in recipe.evaluation.variants and not recipe.recalibration.control:
        raise RecipeError("evaluation.variants has control, which needs recalibration.control = true")
    check_untrained(recipe)


def layer_choice(recipe: Recipe, shape: ModelShape) -> LayerChoice:
    """What training would compute with on this machine's GPU, or without one on a GPU that is assumed.

    Raises: RecipeError if the recipe asks for what cannot be had there.
    """
    return choose(recipe.recalibration, shape, recipe.data.row_length, device_to_plan_for())


def trained_shape(recipe: Recipe, shape: ModelShape) -> ModelShape:
    """The shape of the model that training ends with, made of a source of this `shape`.

    Raises: SurgeryError if norms of queries and keys are to be put in where there are some already.
    """
    path, training = recipe.model.path, recipe.recalibration
    begun = with_qk_norm(shape, recipe.surgery.qk_norm, path)
    return with_qk_norm(begun, training.drop_qk_norm, path, field="recalibration.drop_qk_norm")


def check_recipe(recipe: Recipe, stages: list[Stage]) -> None:
    """All that `check_shapes` checks, then for the stages about to run their checkpoint, documents and tasks.

    A checkpoint that only the Hub has is downloaded for it.

    Raises: RecipeError, SurgeryError, DataError or EvaluationError.
    """
    shape = source_shape(recipe)
    check_shapes(recipe, shape)
    config = read_json(resolve_model(recipe.model) / "config.json")
    check_position_embedding(recipe, source_position_embedding(config))
    names = {stage.name for stage in stages}
    if "surgery" in names:
        check_source(recipe)
    if "data" in names:
        from data_prep import prepare

        prepare.check(recipe.data, tokenizer=tokenizer_path(recipe), model_vocab_size=shape.vocab)
        check_tokenizer(recipe)
    if "evaluation" in names:
        check_evaluation_files(recipe.evaluation, tokenizer_folder(recipe), shape.context)
    if names == {"evaluation"}:
        from eval import run as evaluation

        evaluation.check(recipe.evaluation, evaluated_models(recipe, recipe.folder))


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
    if field := next((field for field, wanted in wants_rope.items() if wanted), None):
        raise RecipeError(f"recalibration.{field}: {recipe.model.path} has no RoPE that could be kept; take it out")
    if scaled := [variant for variant in recipe.evaluation.variants if variant in OF_THE_SOURCE]:
        raise RecipeError(
            f"evaluation.variants has {scaled[0]}: {recipe.model.path} has no RoPE; use drope and drope_scaled alone"
        )


def check_tokenizer(recipe: Recipe) -> None:
    """The export carries the files of the tokenizer's folder; they must be those that the documents are encoded with.

    Raises: RecipeError if the recipe names a file that is not what its folder is loaded as.
    """
    from data_prep.tokenizers.reference import load_tokenizer

    path = tokenizer_path(recipe)
    if path.is_dir():
        return
    known = path.name in ("tokenizer.json", "tokenizer.model")
    if not known or load_tokenizer(path.parent).digest != load_tokenizer(path).digest:
        raise RecipeError(
            f"data.tokenizer = {path}: the exported model could not carry this file as its tokenizer; put it into a "
            "folder without another tokenizer, as tokenizer.json or tokenizer.model"
        )


def check_evaluation_files(config: EvaluationConfig, tokenizer: Path, context: int) -> None:
    """The data of the evaluation's tasks, which would otherwise be opened only when the training is over.

    Raises: EvaluationError.
    """
    from eval.checks import check_needles, read_task_data
    from eval.models import load_tokenizer
    from eval.tasks.recall_samples import load_words

    data = read_task_data(config)
    if config.niah is not None:
        check_needles(config.without(data.missing), data.essays, load_tokenizer(tokenizer), context)
    if config.recall is not None:
        load_words(config.recall)


def check_gpus(recipe: Recipe, gpus: int) -> None:
    """Raises: RecipeError if there are GPUs, but fewer than the training has processes."""
    ranks = recipe.recalibration.data_parallel
    wanted = recipe.surgery.tensor_parallel * (1 if ranks == "auto" else ranks)
    if 0 < gpus < wanted:
        raise RecipeError(
            f"surgery.tensor_parallel x recalibration.data_parallel = {wanted} processes: there are {gpus} GPUs here; "
            "lower data_parallel"
        )
