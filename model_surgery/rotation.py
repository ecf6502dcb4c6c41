"""Whether a model rotates by positions, told from its config; and a rotation that is none."""

from typing import Any

IDENTITY_ROTATION = {"rope_type": "linear", "factor": 1e30}
"""RoPE that divides positions by so much that every cosine rounds to 1, and a sine times a weight to nothing.

For classes that cannot do without a rotation. A huge rope_theta is not the same: the first frequency is 1 with any.
"""
_LARGEST_TURN = 1e-20


def rotating_layers(config: dict[str, Any]) -> list[int]:
    """Numbers of the layers in which a model with this config (as in config.json) tells positions by RoPE."""
    layers = range(config.get("num_hidden_layers", 0))
    model_type = config.get("model_type")
    if model_type in ("llama_drope", "qwen2_drope") and config.get("attention_type", "nope").endswith("nope"):
        return []
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type") == "linear" and 1 / rope.get("factor", 1) < _LARGEST_TURN:
        return []
    if model_type == "smollm3":
        rotates = config.get("no_rope_layers") or [1] * len(layers)
        return [layer for layer in layers if rotates[layer]]
    return list(layers)
