"""Attention of a piece of text to what stands before it, without a mask of the size piece x text.

transformers makes such a mask wherever earlier keys are in a cache, and torch's kernels then skip nothing and take
the memory of the mask in floats.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "drope_pieces"


@contextmanager
def attending_in_pieces(model: "PreTrainedModel") -> Iterator[None]:
    """The model attends by `attend`; prompts must be whole rows, without padding."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    before = model.config._attn_implementation  # the only name that transformers gives it
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """In the form that transformers calls: [rows, heads, tokens, head_dim] to [rows, tokens, heads, head_dim]."""
    return attend(query, key, value, scaling).transpose(1, 2).contiguous(), None


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Causal attention of the last tokens: query [rows, heads, n, width], key and value [rows, kv heads, m, width].

    Query i sees the keys up to m - n + i. One query, and all queries of a text, are torch's own attention.
    """
    rows, heads, tokens, width = query.shape
    groups, past = heads // key.shape[1], key.shape[2] - query.shape[2]
    if tokens == 1:
        packed = query.view(rows, key.shape[1], groups, width)  # queries of one key head, as rows of one matrix
        return scaled_dot_product_attention(packed, key, value, scale=scale).view(query.shape)
    if past == 0:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=groups > 1)
    if query.device.type == "cpu":
        return joined(query, key, value, past, groups, scale)
    return aligned(query, key, value, groups, scale)


def aligned(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, groups: int, scale: float | None
) -> torch.Tensor:
    """By a mask that is only said: the kernels of GPUs make no tensor of it (torch.nn.attention.bias)."""
    mask = causal_lower_right(query.shape[2], key.shape[2])
    key, value = (states.repeat_interleave(groups, 1) if groups > 1 else states for states in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def joined(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, past: int, groups: int, scale: float | None
) -> torch.Tensor:
    """All queries on the keys before the piece, causally on the piece's own, joined by the sums of their weights."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    rows, heads, tokens, width = query.shape
    packed = query.reshape(rows, heads // groups, groups * tokens, width)
    before, sums_before = attention(packed, key[:, :, :past], value[:, :, :past], scale=scale)
    before, sums_before = before.reshape(query.shape), _sums(sums_before, packed).reshape(rows, heads, tokens)
    own_key, own_value = (states[:, :, past:].repeat_interleave(groups, 1) for states in (key, value))
    own, sums_own = attention(query, own_key, own_value, is_causal=True, scale=scale)
    share = torch.sigmoid(sums_before - _sums(sums_own, query)).unsqueeze(-1)
    return (before.float() * share + own.float() * (1 - share)).to(query.dtype)


def _sums(sums: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Logarithms of the sums of exponentials as [rows, heads, tokens], float32."""
    return sums.float().reshape(query.shape[:3])
