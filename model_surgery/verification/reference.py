"""The source as transformers' own model: what every layout is compared with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from model_surgery.checkpoint import Checkpoint
from model_surgery.files import read_json
from model_surgery.rotation import IDENTITY_ROTATION
from model_surgery.shape import NORM_PARTS, ModelShape, NormPart, read_shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_NOT_OF_THE_FAMILY = (
    "model_type",
    "architectures",
    "auto_map",
    "attention_type",
    "no_rope_layers",
    "no_rope_layer_interval",
    "layer_types",
    "drope",
    "transformers_version",
)
_LAYER = "model.layers.{}."

NormHook = Callable[[torch.nn.Module, object, Tensor], Tensor]
"""A forward hook of a projection, which gives what the projection made as the norm leaves it."""


def reference_config(source: Path, shape: ModelShape, *, layers: int, identity_rotation: bool) -> "PretrainedConfig":
    """The config of the family's own class (Llama or Qwen2) with the source's numbers, for so many layers."""
    from transformers import AutoConfig

    raw = {key: value for key, value in read_json(source / "config.json").items() if key not in _NOT_OF_THE_FAMILY}
    config = AutoConfig.for_model(shape.model_type, **(raw | {"num_hidden_layers": layers}))
    if identity_rotation:
        config.rope_parameters = {**config.rope_parameters, **IDENTITY_ROTATION}
    return config


def whole_model(
    source: Path, shape: ModelShape, *, identity_rotation: bool, norms: dict[str, Tensor] | None = None
) -> "PreTrainedModel":
    """The source in fp32 by transformers' own class and loader; `norms` as in `add_norms`, default: the source's."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a published DroPE model has norms that the family's class does not know
    try:
        config = reference_config(source, shape, layers=shape.layers, identity_rotation=identity_rotation)
        model = AutoModelForCausalLM.from_pretrained(source, config=config, dtype=torch.float32).eval()
    finally:
        logging.set_verbosity(verbosity)
    add_norms(model, shape, source_norms(source, shape) if norms is None else norms, range(shape.layers))
    return model


def model_of_layers(
    source: Path,
    shape: ModelShape,
    layers: Sequence[int],
    *,
    identity_rotation: bool,
    norms: dict[str, Tensor] | None = None,
) -> "PreTrainedModel":
    """A model of the source's embeddings and these of its layers alone, in fp32: all that has to fit in memory."""
    from transformers import AutoModelForCausalLM

    config = reference_config(source, shape, layers=len(layers), identity_rotation=identity_rotation)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with Checkpoint(source) as checkpoint, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.tensor(name_in_source(name, layers)))
    add_norms(model, shape, source_norms(source, shape, layers) if norms is None else norms, layers)
    return model


def load_layer(module: torch.nn.Module, checkpoint: Checkpoint, layer: int) -> None:
    """Fills one decoder layer of transformers with a layer of the checkpoint."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(checkpoint.tensor(_LAYER.format(layer) + name))


def name_in_source(name: str, layers: Sequence[int]) -> str:
    """The name in the checkpoint of a tensor of the model that has only `layers` of it."""
    parts = name.split(".")
    if parts[:2] == ["model", "layers"]:
        parts[2] = str(layers[int(parts[2])])
    return ".".join(parts)


def source_norms(source: Path, shape: ModelShape, layers: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The norms of queries and keys that a checkpoint of `shape` holds, by their names."""
    parts = [part for part in NORM_PARTS if shape.norm(part) != "none"]
    if not parts:
        return {}
    names = [norm_name(layer, part) for layer in layers or range(shape.layers) for part in parts]
    with Checkpoint(source) as checkpoint:
        return {name: checkpoint.tensor(name) for name in names}


def norm_name(layer: int, part: NormPart) -> str:
    """Hugging Face's name of a layer's norm of queries ("q") or keys ("k")."""
    return _LAYER.format(layer) + f"self_attn.{part}_norm.weight"


def add_norms(model: Any, shape: ModelShape, norms: dict[str, Tensor], layers: Sequence[int]) -> None:
    """Puts norms on queries and keys of a Llama or Qwen2: hooks on the projections, which are what is normed."""
    for place, layer in enumerate(layers):
        for part in NORM_PARTS:
            if (weight := norms.get(norm_name(layer, part))) is not None:
                projection = getattr(model.model.layers[place].self_attn, f"{part}_proj")
                projection.register_forward_hook(norm_hook(weight.float(), shape))


def norm_hook(weight: Tensor, shape: ModelShape) -> NormHook:
    """RMSNorm over the last axis, whole or by heads, as the weight's width says."""
    width = weight.shape[0]

    def norm(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        groups = output.unflatten(-1, (-1, width))
        return rms_norm(groups, (width,), weight, shape.norm_eps).flatten(-2)

    return norm


def logits_of(model: Any, tokens: Tensor) -> Tensor:
    """Logits [batch, length, vocab]."""
    with torch.inference_mode():
        # With a mask and without cache, so that transformers does not take the rows for packed ones.
        return model(tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits


def source_logits(
    source: Path, tokens: Tensor, *, identity_rotation: bool, norms: dict[str, Tensor] | None = None
) -> Tensor:
    """Logits [batch, length, vocab] of the whole source, see `whole_model`."""
    return logits_of(whole_model(source, read_shape(source), identity_rotation=identity_rotation, norms=norms), tokens)
