"""The numbers that describe one transformer, read from a Hugging Face config."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from model_surgery.errors import SurgeryError
from model_surgery.files import read_json

NormKind = Literal["none", "full", "per_head"]
"""RMSNorm of queries or keys: over all heads together (as in the DroPE paper's code), or over each head alone."""

NormPart = Literal["q", "k"]
"""What a norm is on: queries or keys."""
NORM_PARTS: tuple[NormPart, NormPart] = ("q", "k")

PositionEmbedding = Literal["none", "rope"]
"""What a model tells positions by."""


class ModelShape(BaseModel):
    """Sizes of a decoder-only transformer of the Llama family; all counts are of the whole model, not of one rank.

    `model_type` is "llama" or "qwen2", whatever the format of the checkpoint calls itself.
    """

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
    qkv_bias: bool = False
    q_norm: NormKind = "none"
    k_norm: NormKind = "none"

    @property
    def parameters(self) -> int:
        """Number of weights, a tied output head counted once."""
        qkv = self.head_dim * (self.heads + 2 * self.kv_heads)
        attention = self.hidden * (qkv + self.head_dim * self.heads) + (qkv if self.qkv_bias else 0)
        norms = 2 * self.hidden + self.norm_width("q") + self.norm_width("k")
        layer = attention + 3 * self.hidden * self.ffn + norms
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.hidden

    def norm(self, part: NormPart) -> NormKind:
        """The norm of queries or keys."""
        return self.q_norm if part == "q" else self.k_norm

    def norm_width(self, part: NormPart) -> int:
        """Number of weights of one layer's query or key norm; 0 without one."""
        heads = self.heads if part == "q" else self.kv_heads
        return {"none": 0, "full": heads * self.head_dim, "per_head": self.head_dim}[self.norm(part)]

    def padded(self, tensor_parallel: int) -> "ModelShape":
        """The shape as it is cut: KV groups, feed-forward and vocabulary rounded up to multiples of `tensor_parallel`.

        What is added is zero, and gives exactly the same function: a head of zeros attends to zeros and its output is
        multiplied by zeros; a zero gate lets nothing through; the logits of ids that do not exist are masked. For the
        same reasons all their gradients are zero, so they stay zero in training.
        """
        groups = _round_up(self.kv_heads, tensor_parallel)
        return self.model_copy(
            update={
                "heads": self.heads // self.kv_heads * groups,
                "kv_heads": groups,
                "ffn": _round_up(self.ffn, tensor_parallel),
                "vocab": _round_up(self.vocab, tensor_parallel),
            }
        )

    def padding(self, tensor_parallel: int) -> str:
        """What is padded at this TP degree and what it costs, in words; empty where everything divides."""
        padded = self.padded(tensor_parallel)
        names = {"heads": "query heads", "kv_heads": "KV heads", "ffn": "feed-forward", "vocab": "vocabulary"}
        grown = [
            f"{label} {getattr(self, n)} -> {getattr(padded, n)}"
            for n, label in names.items()
            if getattr(self, n) != getattr(padded, n)
        ]
        more = padded.parameters / self.parameters - 1
        return f"padded with zeros: {', '.join(grown)} (+{more:.1%} weights)" if grown else ""

    def check_tensor_parallel(self, tensor_parallel: int, name: str = "the model") -> None:
        """Raises: SurgeryError if there are more ranks than query heads: some would hold nothing but padding."""
        if tensor_parallel > self.heads:
            raise SurgeryError(
                f"surgery.tensor_parallel = {tensor_parallel}: {name} has {self.heads} query heads; use {self.heads} "
                "or less"
            )


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def read_shape(folder: Path) -> ModelShape:
    """The shape of the checkpoint in `folder`.

    Raises: SurgeryError if there is no config.json or its architecture cannot be operated on.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise SurgeryError(f"{path}: no such file; model.path must name a Hugging Face model folder")
    return shape_from_config(read_json(path), str(path))


_FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "llama_drope": "llama",
    "qwen2_drope": "qwen2",
    "smollm3": "llama",
}
"""model_type in config.json -> the family whose block it is. *_drope: the published DroPE models; smollm3: ours."""

_ATTENTION_TYPES: dict[str, tuple[NormKind, NormKind]] = {
    "nope": ("none", "none"),
    "qk_norm_nope": ("full", "full"),
    "q_norm_nope": ("full", "none"),
    "k_norm_nope": ("none", "full"),
}
"""attention_type in the config of a published DroPE model -> its norms of queries and keys."""

_DTYPES = ("float32", "bfloat16", "float16")

_PLAIN = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "pretraining_tp": 1,
}


def source_position_embedding(raw: dict[str, Any]) -> PositionEmbedding:
    """What the model of this config tells positions by."""
    return "none" if raw.get("model_type") in ("llama_drope", "qwen2_drope", "smollm3") else "rope"


def shape_from_config(raw: dict[str, Any], where: str) -> ModelShape:
    """The shape that a config dictionary (as in config.json) describes; `where` names it in errors.

    Raises: SurgeryError if the architecture is not supported or a size is missing or not valid.
    """
    model_type = raw.get("model_type")
    if model_type not in _FAMILIES:
        raise SurgeryError(
            f"{where}: model_type = {model_type!r} is not supported; supported: llama (Llama 2, SmolLM, SmolLM2), "
            "qwen2, llama_drope and qwen2_drope (published DroPE models), smollm3 without RoPE layers"
        )
    for key, supported in _PLAIN.items():
        if raw.get(key, supported) != supported:
            raise SurgeryError(f"{where}: {key} = {raw[key]!r} is not supported; only {supported!r} is")
    q_norm, k_norm = _norms(raw, where)
    rope = _rope(raw, where)
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if dtype not in _DTYPES:
        raise SurgeryError(f"{where}: dtype = {dtype!r} is not supported; supported: {', '.join(_DTYPES)}")
    try:
        heads = int(raw["num_attention_heads"])
        shape = ModelShape(
            model_type=_FAMILIES[model_type],
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
            dtype=dtype,
            qkv_bias=_FAMILIES[model_type] == "qwen2",
            q_norm=q_norm,
            k_norm=k_norm,
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


def _rope(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The RoPE parameters of a config.

    Raises: SurgeryError if positions are told by anything but plain RoPE, or nothing.
    """
    if raw["model_type"] == "smollm3" and any(raw.get("no_rope_layers") or [1]):
        raise SurgeryError(
            f"{where}: model_type = 'smollm3' with RoPE in some layers is not supported; only no_rope_layers all 0 is"
        )
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise SurgeryError(f"{where}: rope parameters {rope!r} are not a mapping")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise SurgeryError(f"{where}: RoPE of type {rope_type!r} is not supported; only plain RoPE ('default') is")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise SurgeryError(f"{where}: partial_rotary_factor is not supported; only whole heads are rotated")
    return rope


def _norms(raw: dict[str, Any], where: str) -> tuple[NormKind, NormKind]:
    """The norms of queries and keys that a config asks for.

    Raises: SurgeryError if it is of a DroPE model with another attention, or with a softmax scale.
    """
    if raw["model_type"] not in ("llama_drope", "qwen2_drope"):
        return "none", "none"
    if raw.get("softmax_scale") is not None:
        raise SurgeryError(
            f"{where}: softmax_scale = {raw['softmax_scale']!r}: a scale for one context length, which surgery "
            "does not carry on; take it out of the config"
        )
    attention = raw.get("attention_type", "nope")
    if attention not in _ATTENTION_TYPES:
        raise SurgeryError(
            f"{where}: attention_type = {attention!r} is not known; known: {', '.join(_ATTENTION_TYPES)}"
        )
    return _ATTENTION_TYPES[attention]
