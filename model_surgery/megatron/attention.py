"""Causal attention by torch's scaled_dot_product_attention, as Megatron-core's `core_attention` module."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class SDPAttention(torch.nn.Module):
    """Flash or math attention, whichever torch has for the device; causal over the whole row, no dropout.

    With an `attention_mask`, which must be causal itself, attention within documents (see `document_mask`).

    Takes Megatron-core's arguments of a `core_attention`; those that a causal decoder without context parallelism has
    no use for are accepted and not read.
    """

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **unused: object) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale

    @property
    def is_watched(self) -> bool:
        """Whether a hook looks at what goes in."""
        return bool(self._forward_pre_hooks)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **unused: object
    ) -> Tensor:
        """[length, batch, heads, head_dim] (KV heads may be fewer) -> [length, batch, heads * head_dim].

        `attention_mask`: None for causal, else bool [batch, 1, length, length], True where a query must not attend.
        """
        length, batch = query.shape[:2]
        groups = query.shape[2] // key.shape[2]
        if attention_mask is not None and groups > 1:
            # Of torch's CUDA kernels those that take a mask without storing all scores take no grouped KV heads.
            key, value = (heads.repeat_interleave(groups, dim=2) for heads in (key, value))
        query, key, value = (heads.permute(1, 2, 0, 3) for heads in (query, key, value))
        if query.device.type == "cpu":
            # torch's CPU kernel goes through a row's keys again and again: with a batch between them it takes longer.
            query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None,
            scale=self.softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.permute(2, 0, 1, 3).reshape(length, batch, -1)


def document_mask(documents: Tensor) -> Tensor:
    """Megatron-core's mask for causal attention within documents: bool [batch, 1, length, length], True where masked.

    `documents`: integers [batch, length], the document of every token; row q may attend to column k <= q of its own
    document. Positions need no reset: RoPE depends on distances alone, and without it there are none.
    """
    other = documents.unsqueeze(2) != documents.unsqueeze(1)
    later = torch.ones(other.shape[1:], dtype=torch.bool, device=documents.device).triu(1)
    return (other | later).unsqueeze(1)
