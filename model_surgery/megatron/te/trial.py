"""A pass through attention in FP8, forward and backward, to see whether the device can."""

import torch
from transformer_engine.common.recipe import DelayedScaling, Format
from transformer_engine.pytorch import DotProductAttention, autocast
from transformer_engine.pytorch.quantization import FP8GlobalStateManager


def reason_against(*, heads: int, kv_heads: int, head_dim: int, length: int) -> str | None:
    """What Transformer Engine says to one row of `length` tokens with these heads; None if it computes it."""
    recipe = DelayedScaling(fp8_format=Format.HYBRID, amax_history_len=1, reduce_amax=False, fp8_dpa=True)
    try:
        core = DotProductAttention(heads, head_dim, num_gqa_groups=kv_heads, qkv_format="sbhd", attn_mask_type="causal")
        query, key, value = (
            torch.randn(
                length,
                1,
                number,
                head_dim,
                device=torch.cuda.current_device(),
                dtype=torch.bfloat16,
                requires_grad=True,
            )
            for number in (heads, kv_heads, kv_heads)
        )
        with autocast(enabled=True, recipe=recipe):
            out = core(query, key, value, attn_mask_type="causal")
        out.float().sum().backward()
        torch.cuda.synchronize()
    except (RuntimeError, ValueError, AssertionError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    finally:
        FP8GlobalStateManager.reset()  # or every later pass would bring these scales up to date too
    return None
