"""Causal attention by torch's scaled_dot_product_attention, as Megatron-core's `core_attention` module."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class SDPAttention(torch.nn.Module):
    """Flash or math attention, whichever torch has for the device; causal over the whole row, no mask, no dropout.

    Takes Megatron-core's arguments of a `core_attention`; those that a causal decoder without context parallelism has
    no use for are accepted and not read.
    """

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **unused: object) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **unused: object
    ) -> Tensor:
        """[length, batch, heads, head_dim] (KV heads may be fewer) -> [length, batch, heads * head_dim]."""
        length, batch = query.shape[:2]
        out = scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            is_causal=True,
            scale=self.softmax_scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return out.permute(2, 0, 1, 3).reshape(length, batch, -1)
