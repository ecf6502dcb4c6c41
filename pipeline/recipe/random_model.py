"""Training from scratch (`model.random_seed`): weights drawn in the surgery stage stand in for the source's."""

import hashlib
import logging
from pathlib import Path

from eval.config import OF_THE_SOURCE
from model_surgery import convert
from model_surgery.checkpoint import fingerprint
from model_surgery.export.tokenizer import copy_tokenizer
from model_surgery.files import file_digest, read_json
from model_surgery.random_weights import draw_checkpoint, initializer_range
from model_surgery.shape import ModelShape, read_shape
from pipeline.errors import RecipeError
from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.recipe import Recipe

log = logging.getLogger(__name__)


def source_shape(recipe: Recipe) -> ModelShape:
    """The shape of the model that the run starts from.

    Raises: RecipeError or SurgeryError if there is no such model, or surgery cannot operate on it.
    """
    return with_trained_context(recipe, read_shape(resolve_model(recipe.model)))


def with_trained_context(recipe: Recipe, described: ModelShape) -> ModelShape:
    """The shape that the run starts from, where config.json describes another.

    A drawn model knows no context but the one that it is trained at, whatever its config.json was written for.
    """
    drawn = recipe.model.random_seed is not None
    return described.model_copy(update={"context": recipe.data.row_length}) if drawn else described


def source_folder(recipe: Recipe) -> Path:
    """The folder of the whole checkpoint that surgery cuts; one that is drawn is in the stage's folder.

    Raises: RecipeError if there is none to be had.
    """
    if recipe.model.random_seed is None:
        return resolve_model(recipe.model)
    return recipe.folder / "surgery" / f"random-{Path(recipe.model.path).name}"


def source_fingerprint(recipe: Recipe) -> str:
    """A digest of what identifies the source: its files, or what its weights are drawn from.

    Raises: RecipeError or SurgeryError if something of it is not there.
    """
    folder = resolve_model(recipe.model)
    if recipe.model.random_seed is None:
        return fingerprint(folder)
    read_shape(folder)
    drawn_from = f"{file_digest(folder / 'config.json')} {recipe.data.row_length} {recipe.model.random_seed}"
    return hashlib.sha256(drawn_from.encode()).hexdigest()


def check_source(recipe: Recipe) -> None:
    """Raises: SurgeryError if the checkpoint cannot be cut, or has to be drawn and cannot be."""
    folder = resolve_model(recipe.model)
    if recipe.model.random_seed is None:
        convert.check(recipe.surgery, folder)
        return
    path = folder / "config.json"
    initializer_range(read_json(path), str(path))


def check_untrained(recipe: Recipe) -> None:
    """Raises: RecipeError if the evaluation would score weights that were drawn and never trained."""
    untrained = [variant for variant in recipe.evaluation.variants if variant in OF_THE_SOURCE]
    if recipe.model.random_seed is not None and untrained:
        raise RecipeError(
            f"evaluation.variants has {untrained[0]}, which scores the source, and model.random_seed draws that at "
            "random; use drope, drope_scaled and control"
        )


def draw_source(recipe: Recipe, tokenizer: Path) -> Path:
    """The folder of the whole checkpoint (`source_folder`), drawn now if it has to be.

    `tokenizer`: the folder of the tokenizer that goes with a drawn one.

    Raises: RecipeError if there is none to be had, DiskError if the disk is full.
    """
    folder, seed = source_folder(recipe), recipe.model.random_seed
    if seed is None:
        return folder
    described = resolve_model(recipe.model)
    config = read_json(described / "config.json") | {"max_position_embeddings": recipe.data.row_length}
    copy_tokenizer(tokenizer, described, folder)
    draw_checkpoint(folder, config, seed)
    log.info("%s weights drawn from seed %d: %s", f"{read_shape(folder).parameters:,}", seed, folder)
    return folder
