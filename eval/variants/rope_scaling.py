"""RoPE's scalings as pure functions of a config: positions are read differently, no weight is touched."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eval.config import SCALINGS, Variant
from eval.errors import EvaluationError
from eval.models import head_dim_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def canonical(variant: Variant, factor: int, softmax_scale_c: float) -> Variant:
    """The variant that is computed for `variant` at context factor s: at s = 1 every scaling is the identity.

    Scalings of RoPE with factor 1 are the source, and so is what is cropped to the training length; beta = 1 + c ln 1
    = 1 leaves DroPE as it is, and so does c = 0.
    """
    if factor == 1 and variant in (*SCALINGS, "crop"):
        return "rope"
    if variant == "drope_scaled" and (factor == 1 or softmax_scale_c == 0):
        return "drope"
    return variant


def depends_on_factor(variant: Variant) -> bool:
    """Whether the model itself changes with the context factor; if not, one load serves every length."""
    return variant in (*SCALINGS, "drope_scaled")


def ntk_theta(theta: float, head_dim: int, factor: float) -> float:
    """NTK-aware base: theta' = theta * s^(d / (d - 2)), so that the slowest frequency is divided by s exactly.

    Source: bloc97 (2023), "NTK-aware scaled RoPE"; equation 16 of YaRN (arXiv:2309.00071).
    """
    return theta * factor ** (head_dim / (head_dim - 2))


def scaled_rope(
    variant: Variant, theta: float, head_dim: int, factor: int, context: int, factors: Sequence[float] = ()
) -> dict[str, Any]:
    """`rope_parameters` of transformers for a RoPE variant at context factor `factor`.

    context: training length C in tokens. factors: of LongRoPE2, [head_dim / 2]. Sources: PI, arXiv:2306.15595
    (positions divided by s); YaRN, arXiv:2309.00071; LongRoPE2, arXiv:2502.20082; dynamic NTK: emozilla (2023),
    "Dynamically scaled RoPE": NTK's base with s l / C - (s - 1) in place of s, l being the length read.
    """
    rope: dict[str, Any] = {"rope_theta": theta, "factor": float(factor)}
    if variant == "dynamic_ntk":
        return rope | {"rope_type": "dynamic"}
    if variant == "longrope2":
        if len(factors) != head_dim // 2:
            raise EvaluationError(f"longrope2: {len(factors)} factors for {head_dim // 2} pairs; give one for each")
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": context}
        return rope | {"long_factor": list(factors), "short_factor": [1.0] * len(factors)}
    if variant == "pi":
        return {"rope_type": "linear", "rope_theta": theta, "factor": float(factor)}
    if variant == "ntk":
        return {"rope_type": "default", "rope_theta": ntk_theta(theta, head_dim, factor)}
    if variant == "yarn":
        return {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": float(factor),
            "original_max_position_embeddings": context,
        }
    return {"rope_type": "default", "rope_theta": theta}


def variant_config(
    variant: Variant, config: "PretrainedConfig", factor: int, context: int, factors: Sequence[float] = ()
) -> "PretrainedConfig":
    """The config of `variant` at context factor `factor`; `config` itself is left as it is.

    max_position_embeddings is raised to factor * context, so that nothing clips; dynamic NTK takes it for C.
    """
    import copy

    changed = copy.deepcopy(config)
    if variant != "dynamic_ntk":
        changed.max_position_embeddings = max(config.max_position_embeddings, factor * context)
    if variant in SCALINGS:
        theta = config.rope_parameters["rope_theta"]
        changed.rope_parameters = scaled_rope(variant, theta, head_dim_of(config), factor, context, factors)
    return changed
