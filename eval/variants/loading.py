"""Model variants as exact transforms of one source model: no weight is trained."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from eval.config import Variant
from eval.errors import EvaluationError
from eval.models import read_config
from eval.variants.rope_scaling import variant_config
from model_surgery.softmax_scale import softmax_scale

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_variant(
    variant: Variant,
    folder: Path,
    factor: int,
    *,
    context: int,
    softmax_scale_c: float = 0.0,
    factors: Sequence[float] = (),
    dtype: str = "float32",
    device: "torch.device | str" = "cpu",
) -> "PreTrainedModel":
    """The HF model of `variant`, made from `folder`, for lengths up to factor * context tokens; in eval mode.

    factors: LongRoPE2's, [head_dim / 2].

    Raises: EvaluationError where tensors are missing, unknown or misshapen.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    config = variant_config(variant, read_config(folder), factor, context, factors)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
        )
    except UnpicklingError:  # its text would advise to run what the file holds
        raise EvaluationError(f"{folder}: the weights hold more than tensors, maybe code; nothing is loaded") from None
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise EvaluationError(f"{folder}: the weights do not load: {reason}") from None
    model, report = loaded
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            names = sorted(report[kind])
            raise EvaluationError(f"{folder}: {len(names)} {kind.replace('_', ' ')}, the first {names[0]}")
    if variant == "drope_scaled":
        scale_queries(model, softmax_scale(factor, softmax_scale_c))
    return model.to(device).eval()


def forget_lengths(model: "PreTrainedModel") -> None:
    """Makes dynamic NTK read the next tokens as the first: transformers keeps the base of the longest text so far."""
    import torch

    model.model.rotary_emb(
        torch.empty(1, device=model.device), torch.zeros(1, 1, dtype=torch.long, device=model.device)
    )


def scale_queries(model: "PreTrainedModel", beta: float) -> None:
    """Multiply every layer's queries by beta, in place: softmax(beta q.k / sqrt d) with the model's own attention.

    A norm of the queries would take the factor out again, so where there is one, it is the norm's weight that bears it.
    """
    import torch

    with torch.no_grad():
        for layer in model.model.layers:
            norm = getattr(layer.self_attn, "q_norm", None)
            for parameter in (layer.self_attn.q_proj if norm is None else norm).parameters():
                parameter.mul_(beta)
