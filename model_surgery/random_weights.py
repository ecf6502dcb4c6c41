"""A checkpoint of random weights, where training from scratch starts."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.files import atomic_path, write_json
from model_surgery.architectures import source_shapes
from model_surgery.errors import SurgeryError
from model_surgery.shape import shape_from_config
from model_surgery.tensor_file import TensorFile

Std = Callable[[str, tuple[int, ...]], float]
"""Name and shape of a matrix [outputs, inputs], or of the embedding [ids, hidden] -> its standard deviation."""

_DEFAULT_RANGE = 0.02
"""initializer_range of a config.json that does not say it, in every class of transformers that we take."""


def initializer_range(config: dict[str, Any], where: str) -> float:
    """Standard deviation of a fresh model's matrices, as its config says; `where` names it in errors.

    Raises: SurgeryError if it is not a number above zero.
    """
    value = config.get("initializer_range", _DEFAULT_RANGE)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise SurgeryError(f"{where}: initializer_range = {value!r} must be a number above 0, such as {_DEFAULT_RANGE}")
    return float(value)


def draw_checkpoint(folder: Path, config: dict[str, Any], seed: int, std: Std | None = None) -> None:
    """Writes model.safetensors with weights drawn from `seed`, then config.json, without which it is no checkpoint.

    Drawn as transformers draws its models (PreTrainedModel._init_weights): matrices and embedding from a normal
    distribution of standard deviation initializer_range, or what `std` says of each; biases are zeros, norms ones. In
    fp32, then rounded to the config's dtype. One tensor at a time: memory for the largest, the embedding, in both.

    Equal arguments give equal bytes, whatever the number of threads, on every CPU with AVX2; torch rounds otherwise
    where there is none.

    Raises: SurgeryError if the config is not of a supported model; DiskError if the disk is full.
    """
    where = str(folder / "config.json")
    shape, default = shape_from_config(config, where), initializer_range(config, where)
    rule = std or (lambda name, size: default)
    generator, dtype = torch.Generator().manual_seed(seed), getattr(torch, shape.dtype)
    sizes = source_shapes(shape)
    with atomic_path(folder / "model.safetensors") as temporary:
        file = TensorFile(temporary, _header_bytes(sizes))
        try:
            for name, size in sizes.items():
                tensor = _draw(name, size, rule, generator).to(dtype)
                file.fill(file.reserve(name, tensor), tensor)
            file.write_header()
        finally:
            file.close()
    write_json(folder / "config.json", config)


def _draw(name: str, size: tuple[int, ...], std: Std, generator: torch.Generator) -> Tensor:
    if len(size) == 2:
        return torch.empty(size).normal_(std=std(name, size), generator=generator)
    return torch.zeros(size) if name.endswith("bias") else torch.ones(size)


def _header_bytes(sizes: dict[str, tuple[int, ...]]) -> int:
    """Room for the header: 128 bytes for each tensor beside its name, and whole words."""
    needed = sum(len(name) + 128 for name in sizes)
    return -(-needed // 8) * 8
