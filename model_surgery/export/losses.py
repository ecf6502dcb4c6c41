"""Does transformers compute from the exported folder what the trained model computed?"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from model_surgery.errors import SurgeryError
from model_surgery.transformers_registration import register_drope

LOSS_LIMIT = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest accepted mean difference of a token's loss between training and export, by the coarser of their dtypes."""


def compare_losses(folder: Path, export_check: Path, *, softmax_scale: float = 1.0) -> dict[str, Any]:
    """Loss of every token of the export check by transformers on the exported folder, against the trained model's.

    softmax_scale: the factor of its attention logits that the exported model has and the trained one has not. It is
    divided out again in the loaded model, so that nothing but the factor may differ.

    Raises: SurgeryError if the mean absolute difference exceeds the limit of the exported dtype.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    register_drope()
    trained = load_file(export_check)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    for layer in model.model.layers:
        layer.self_attn.scaling /= softmax_scale
    with torch.inference_mode():
        tokens = trained["tokens"]
        logits = model(tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits.float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), trained["labels"].flatten(), reduction="none")
    difference = (losses - trained["losses"].flatten()).abs()
    exported = str(model.dtype).removeprefix("torch.")
    facts = {
        "probe_tokens": tokens.numel(),
        "loss_trained": trained["losses"].mean().item(),
        "loss_exported": losses.mean().item(),
        "mean_difference": difference.mean().item(),
        "max_difference": difference.max().item(),
        "limit": max(LOSS_LIMIT[exported], LOSS_LIMIT[trained_dtype(export_check)]),
    }
    if not facts["mean_difference"] <= facts["limit"]:  # so that NaN is refused too
        raise SurgeryError(
            f"{folder}: the exported model's loss differs from the trained one's by {facts['mean_difference']:.2e} per "
            f"token (limit {facts['limit']:.0e}); the layout it was made from is damaged or from other code"
        )
    return facts


def trained_dtype(export_check: Path) -> str:
    """The dtype in which the trained model computed its losses."""
    with safe_open(export_check, framework="pt") as handle:
        return (handle.metadata() or {}).get("dtype", "float32")
