"""The scales of FP8 in checkpoints: in DeepSpeed's files of model states, or in a file of their own.

A checkpoint without them is gone on from with fresh ones, and one with them by a training that does not use FP8.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Tensor

from model_surgery.files import file_digest
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from model_surgery.megatron.model import LanguageModel

FP8_KEY = "fp8"
"""Where DeepSpeed's files have them."""
FP8_FILE = "fp8.safetensors"
"""The file of a portable checkpoint."""


def scales_of(model: "LanguageModel") -> dict[str, Tensor]:
    """What a checkpoint holds of a model's FP8; empty where it has none."""
    if model.fp8 is None:
        return {}
    from model_surgery.megatron.te.state import fp8_state

    return fp8_state(model)


def set_scales(model: "LanguageModel", scales: dict[str, Tensor]) -> None:
    """Gives a model what a checkpoint holds; nothing to do where either has no FP8."""
    if model.fp8 is None or not scales:
        return
    from model_surgery.megatron.te.state import load_fp8_state

    load_fp8_state(model, model.fp8, scales)


def write_scales(scales: Mapping[str, Tensor], folder: Path) -> dict[str, str]:
    """Writes a portable checkpoint's file, where there is something to write; its digest by its name."""
    if not scales:
        return {}
    save_file({name: value.contiguous() for name, value in scales.items()}, folder / FP8_FILE)
    return {FP8_FILE: file_digest(folder / FP8_FILE)}


def read_scales(folder: Path, digests: Mapping[str, str]) -> dict[str, Tensor]:
    """What `write_scales` has written.

    Raises: RecipeError if the file is gone or its bytes are others.
    """
    if FP8_FILE not in digests:
        return {}
    path = folder / FP8_FILE
    if not path.is_file() or file_digest(path) != digests[FP8_FILE]:
        raise RecipeError(f"{path}: gone, or its bytes are not those written; use another checkpoint")
    return load_file(path)
