"""Which transformers class computes an exported model, and what its config.json must say.

A stock class wherever one computes exactly the model; else the published DroPE format, with its code in the folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_surgery.config import ExportConfig
from model_surgery.errors import SurgeryError
from model_surgery.rotation import IDENTITY_ROTATION
from model_surgery.shape import ModelShape, PositionEmbedding

_CODE = ("configuration_drope.py", "modeling_drope.py")
_VLLM_IDENTITY = "vLLM needs `--model-impl transformers --max-model-len N`: its own class would tabulate the rotation."
_ANYWHERE = "vLLM and llama.cpp have this class."
_FAMILY = {"llama": "Llama", "qwen2": "Qwen2"}


@dataclass(frozen=True)
class HubFormat:
    """A class of transformers for one model.

    config: the fields of config.json that belong to the class. zero_output_bias: the class has a bias on o_proj, which
    the model has not. code: files of `hub_code` that the folder must hold. For people: why this class, and what is
    elsewhere (vLLM, llama.cpp) made of it; docs/export.md says what was tried and what was read.
    """

    architecture: str
    config: dict[str, Any]
    why: str
    elsewhere: str
    zero_output_bias: bool = False
    code: tuple[str, ...] = ()

    @property
    def reads_softmax_scale(self) -> bool:
        """Whether the class takes config.json's softmax_scale for its attention."""
        return bool(self.code)


def format_of(shape: ModelShape, position_embedding: PositionEmbedding, config: ExportConfig) -> HubFormat:
    """The format that a model is exported in.

    Raises: SurgeryError if no class has this mixture of norms, or config.format cannot be had.
    """
    norms = {shape.q_norm, shape.k_norm}
    rotates = position_embedding == "rope"
    if "per_head" in norms:
        if len(norms) > 1:
            raise SurgeryError(
                f"{shape.q_norm} norm on queries and {shape.k_norm} norm on keys: no class computes that; use one kind"
            )
        return _qwen3(shape, rotates)
    if "full" in norms:
        if config.format == "identity_rope":
            raise SurgeryError(
                "export.format = identity_rope: no stock class has a norm over all heads together; use auto"
            )
        return _drope(shape, rotates)
    if rotates:
        return _own_class(shape, _rope(shape), "the source's own class, RoPE kept", _ANYWHERE)
    if config.format == "identity_rope":
        rotation = _rope(shape, IDENTITY_ROTATION)
        why = "the source's own class, its rotation made the identity"
        return _own_class(shape, rotation, why, f"llama.cpp computes this export rightly. {_VLLM_IDENTITY}")
    return _smollm3(shape)


def _smollm3(shape: ModelShape) -> HubFormat:
    config = {
        "model_type": "smollm3",
        "no_rope_layers": [0] * shape.layers,
        "layer_types": ["full_attention"] * shape.layers,
        "use_sliding_window": False,
        "attention_bias": shape.qkv_bias,
        "mlp_bias": False,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
    }
    why = "Llama's block with RoPE switched off in every layer"
    if shape.qkv_bias:
        why += "; its output projections have a bias that the source has not, of zeros"
    elsewhere = (
        "vLLM should run it by transformers' class. **llama.cpp does not compute it rightly**: it rotates three of "
        "four layers of any SmolLM3. Export with `export.format=identity_rope` for llama.cpp."
    )
    return HubFormat("SmolLM3ForCausalLM", config, why, elsewhere, zero_output_bias=shape.qkv_bias)


def _own_class(shape: ModelShape, rotation: dict[str, Any], why: str, elsewhere: str) -> HubFormat:
    return HubFormat(f"{_FAMILY[shape.model_type]}ForCausalLM", _family(shape) | rotation, why, elsewhere)


def _qwen3(shape: ModelShape, rotates: bool) -> HubFormat:
    config = {
        "model_type": "qwen3",
        "attention_bias": shape.qkv_bias,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * shape.layers,
        **(_rope(shape) if rotates else _rope(shape, IDENTITY_ROTATION)),
    }
    why = "the stock class with a norm over each head of queries and keys, "
    why += "RoPE kept" if rotates else "its rotation made the identity"
    llama_cpp = "refuses its biases of zeros" if shape.qkv_bias else "computes this export rightly"
    elsewhere = f"llama.cpp {llama_cpp}." + ("" if rotates else f" {_VLLM_IDENTITY}")
    return HubFormat("Qwen3ForCausalLM", config, why, elsewhere, zero_output_bias=shape.qkv_bias)


def _drope(shape: ModelShape, rotates: bool) -> HubFormat:
    norms = {("full", "full"): "qk_norm", ("full", "none"): "q_norm", ("none", "full"): "k_norm"}
    family = _FAMILY[shape.model_type]
    auto = {"AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
    config = {
        **_family(shape),
        "model_type": f"{shape.model_type}_drope",
        "attention_type": norms[shape.q_norm, shape.k_norm] + ("" if rotates else "_nope"),
        "auto_map": {
            "AutoConfig": f"configuration_drope.DroPE{family}Config",
            **{name: f"modeling_drope.DroPE{family}{suffix}" for name, suffix in auto.items()},
        },
        **_rope(shape),
    }
    why = "no stock class has a norm over all heads together; the published DroPE format, its code in this folder"
    elsewhere = "vLLM should take it with `--trust-remote-code` on one GPU; llama.cpp has no such class and refuses it."
    return HubFormat(f"DroPE{family}ForCausalLM", config, why, elsewhere, code=_CODE)


def _family(shape: ModelShape) -> dict[str, Any]:
    """What Llama's and Qwen2's configs say beyond sizes; where a model has biases is fixed in Qwen2's class."""
    if shape.model_type == "llama":
        return {"model_type": "llama", "attention_bias": False, "mlp_bias": False}
    return {"model_type": "qwen2", "use_sliding_window": False, "layer_types": ["full_attention"] * shape.layers}


def _rope(shape: ModelShape, scaling: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The rotation, for transformers 5 and, since it would rotate otherwise, in the words of version 4 as well."""
    scaling = dict(scaling or {})
    fields: dict[str, Any] = {
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default", **scaling},
        "rope_theta": shape.rope_theta,
    }
    return fields | ({"rope_scaling": scaling} if scaling else {})
