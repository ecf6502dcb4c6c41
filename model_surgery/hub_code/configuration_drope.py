"""Configurations of DroPE models (arXiv:2512.12167): Llama or Qwen2 with norms on queries and keys, without RoPE.

attention_type: which of queries and keys pass an RMSNorm over all their heads together (qk_norm, q_norm, k_norm), with
    the suffix _nope where nothing is rotated; "nope" alone has no norm.
softmax_scale: the factor of the attention logits, instead of head_dim ** -0.5; None keeps that.
"""

from typing import Any

from transformers import LlamaConfig, Qwen2Config

NORMED_PARTS = {"": "", "qk_norm": "qk", "q_norm": "q", "k_norm": "k"}
"""The norms in an attention type, its ending "nope" taken off -> which projections they follow."""


def normed_parts(attention_type: str) -> str:
    """The projections that a norm follows: "q", "k", "qk" or "".

    Raises: ValueError if there is no such type.
    """
    norms = attention_type.removesuffix("nope").removesuffix("_")
    if norms not in NORMED_PARTS or not attention_type:
        raise ValueError(f"attention_type = {attention_type!r} is not known")
    return NORMED_PARTS[norms]


def rotates(attention_type: str) -> bool:
    """Whether queries and keys are rotated by their positions."""
    return not attention_type.endswith("nope")


class DroPELlamaConfig(LlamaConfig):
    """Llama's, and the two fields above."""

    model_type = "llama_drope"
    # A norm over all heads needs the sum over ranks, which no plan has.
    base_model_tp_plan = None  # type: ignore[assignment]  # transformers reads None as "no plan"

    def __init__(self, attention_type: str = "nope", softmax_scale: float | None = None, **kwargs: Any) -> None:
        normed_parts(attention_type)
        self.attention_type = attention_type
        self.softmax_scale = softmax_scale
        super().__init__(**kwargs)


class DroPEQwen2Config(Qwen2Config):
    """Qwen2's, and the two fields above."""

    model_type = "qwen2_drope"
    # A norm over all heads needs the sum over ranks, which no plan has.
    base_model_tp_plan = None  # type: ignore[assignment]  # transformers reads None as "no plan"

    def __init__(self, attention_type: str = "nope", softmax_scale: float | None = None, **kwargs: Any) -> None:
        normed_parts(attention_type)
        self.attention_type = attention_type
        self.softmax_scale = softmax_scale
        super().__init__(**kwargs)
