"""Where the source checkpoint is: a folder, or a Hub id that is downloaded or found in the Hub's local cache."""

from pathlib import Path

from model_surgery.known_models import KNOWN_MODELS
from model_surgery.shape import ModelShape, read_shape
from pipeline.errors import RecipeError
from pipeline.recipe.hub_errors import hub_error
from pipeline.recipe.recipe import ModelConfig

_DESCRIPTION = ["*.json", "tokenizer.model", "merges.txt", "*.jinja"]
_WEIGHTS = ["*.safetensors"]
_TORCH_FILES = ["pytorch_model*.bin"]


def resolve_model(model: ModelConfig) -> Path:
    """The folder that holds config.json, the tokenizer and the weights, but for weights that are drawn (random_seed).

    Raises: RecipeError if there is no such folder and, for a Hub id, it can be neither downloaded nor found locally;
    ConnectionError if the Hub would have to be asked and does not answer; StageFailed if the disk is full.
    """
    folder = Path(model.path)
    if folder.is_dir():
        return folder
    if not is_hub_id(model.path):
        raise RecipeError(f"model.path = {model.path}: no such folder, nor a Hub id (owner/name)")
    from huggingface_hub import snapshot_download

    drawn = model.random_seed is not None
    patterns = _DESCRIPTION if drawn else _DESCRIPTION + _WEIGHTS
    try:
        folder = Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
        if not drawn and not any(folder.glob("*.safetensors")):  # many hold both, so these only where they must be
            snapshot_download(model.path, revision=model.revision, allow_patterns=_TORCH_FILES)
        return folder
    except Exception as error:  # the Hub client raises a different class for every way of not being reached
        raise hub_error(f"model.path = {model.path}: neither a folder nor to be had from the Hub", error) from error


def plan_shape(model: ModelConfig) -> tuple[ModelShape, str]:
    """The model's shape and where it was read, without any download.

    Raises: RecipeError if it is neither a folder, nor in the Hub's local cache, nor one of the known models.
    """
    folder = Path(model.path)
    if folder.is_dir():
        return read_shape(folder), str(folder / "config.json")
    if is_hub_id(model.path):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
        if isinstance(cached, str):
            return read_shape(Path(cached).parent), cached
    if model.path in KNOWN_MODELS:
        return KNOWN_MODELS[model.path], "the published shape, as built in"
    raise RecipeError(
        f"model.path = {model.path}: no such folder and not in the Hub cache; known without a download: "
        f"{', '.join(KNOWN_MODELS)}"
    )


def is_hub_id(path: str) -> bool:
    """Whether `path` can name a repository of the Hub with its owner; a relative path such as ../model cannot."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return path.count("/") == 1
