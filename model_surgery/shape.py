"""The numbers that describe one transformer, read from a Hugging Face config."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from model_surgery.errors import SurgeryError
from model_surgery.files import read_json


class ModelShape(BaseModel):
    """Sizes of a decoder-only transformer of the Llama family; all counts are of the whole model, not of one rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: str
    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    ffn: PositiveInt
    vocab: PositiveInt
    context: PositiveInt
    tied: bool
    norm_eps: PositiveFloat
    rope_theta: PositiveFloat
    dtype: str = "float32"

    @property
    def parameters(self) -> int:
        """Number of weights, a tied output head counted once."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.hidden

    def check_tensor_parallel(self, tensor_parallel: int, name: str = "the model") -> None:
        """Raises: SurgeryError if the heads, the feed-forward or the vocabulary do not divide by `tensor_parallel`."""
        counts = {"query heads": self.heads, "KV heads": self.kv_heads, "ffn": self.ffn, "vocabulary": self.vocab}
        if odd := [f"{count} {what}" for what, count in counts.items() if count % tensor_parallel]:
            fits = [str(n) for n in range(1, self.heads + 1) if not any(count % n for count in counts.values())]
            raise SurgeryError(
                f"surgery.tensor_parallel = {tensor_parallel}: {name} has {' and '.join(odd)}, not divisible by it; "
                f"use {' or '.join(fits)}"
            )


def read_shape(folder: Path) -> ModelShape:
    """The shape of the checkpoint in `folder`.

    Raises: SurgeryError if there is no config.json or its architecture cannot be operated on.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise SurgeryError(f"{path}: no such file; model.path must name a Hugging Face model folder")
    return shape_from_config(read_json(path), str(path))


def shape_from_config(raw: dict[str, Any], where: str) -> ModelShape:
    """The shape that a config dictionary (as in config.json) describes; `where` names it in errors.

    Raises: SurgeryError if the architecture is not supported or a size is missing or not valid.
    """
    model_type = raw.get("model_type")
    if model_type != "llama":
        raise SurgeryError(f"{where}: model_type = {model_type!r} is not supported; supported: llama (Llama 2, SmolLM)")
    for key, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if raw.get(key, wanted) != wanted:
            raise SurgeryError(f"{where}: {key} = {raw[key]!r} is not supported; only {wanted!r} is")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise SurgeryError(f"{where}: rope parameters {rope!r} are not a mapping")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise SurgeryError(f"{where}: RoPE of type {rope_type!r} is not supported; only plain RoPE ('default') is")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise SurgeryError(f"{where}: partial_rotary_factor is not supported; only whole heads are rotated")
    try:
        heads = int(raw["num_attention_heads"])
        shape = ModelShape(
            model_type=model_type,
            layers=raw["num_hidden_layers"],
            hidden=raw["hidden_size"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            ffn=raw["intermediate_size"],
            vocab=raw["vocab_size"],
            context=raw["max_position_embeddings"],
            tied=raw.get("tie_word_embeddings", False),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10000.0)),
            dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
        )
    except KeyError as error:
        raise SurgeryError(f"{where}: {error.args[0]} is missing from the config") from error
    except ValidationError as error:
        problem = error.errors()[0]
        raise SurgeryError(f"{where}: {problem['loc'][0]} = {problem['input']!r}: {problem['msg']}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        given = f"num_attention_heads = {raw['num_attention_heads']!r} and hidden_size = {raw.get('hidden_size')!r}"
        raise SurgeryError(f"{where}: {given} must be positive whole numbers") from error
    if shape.heads % shape.kv_heads:
        raise SurgeryError(f"{where}: {shape.heads} query heads cannot be grouped over {shape.kv_heads} KV heads")
    return shape
