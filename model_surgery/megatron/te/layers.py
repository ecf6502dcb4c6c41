"""Transformer layers of Transformer Engine's modules, by Megatron-core's own specification of them."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TEDotProductAttention, TENorm
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.nn.functional import pad

from model_surgery.megatron.attention import SDPAttention
from model_surgery.megatron.sequence_parallel import RowPartNorm
from model_surgery.megatron.te.fp8 import FP8Switch


class Attention(torch.nn.Module):
    """Causal attention by the kernel that Transformer Engine finds best, in FP8 where that is switched on.

    Attention within documents, for which it has no fused kernel, is left to torch's.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        *,
        fp8: FP8Switch | None,
        softmax_scale: float | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        self.head_dim = config.kv_channels
        self.softmax_scale = self.head_dim**-0.5 if softmax_scale is None else softmax_scale
        self.filled = fp8.settings.head_dim(self.head_dim) if fp8 else self.head_dim
        self.layer_number, self.fp8 = layer_number, fp8
        self.fused = TEDotProductAttention(
            config=config,
            layer_number=layer_number,
            k_channels=self.filled,
            v_channels=self.filled,
            softmax_scale=self.softmax_scale,
            **others,
        )
        self.within_documents = SDPAttention(config, self.softmax_scale)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **unused: Any
    ) -> Tensor:
        """[length, batch, heads, head_dim] (KV heads may be fewer) -> [length, batch, heads * head_dim]."""
        if attention_mask is not None:
            return self.within_documents(query, key, value, attention_mask)
        more = self.filled - self.head_dim
        if more:
            # Zeros add nothing to the products of queries and keys, and come out of the values as zeros.
            query, key, value = (pad(heads, (0, more)) for heads in (query, key, value))
        with nullcontext() if self.fp8 is None else self.fp8.attention(self.layer_number):
            out = self.fused(query, key, value, None, AttnMaskType.causal)
        return out.unflatten(-1, (-1, self.filled))[..., : self.head_dim].flatten(-2) if more else out


class FP8Layer(TransformerLayer):
    """A layer whose matrices are in FP8 where that is switched on."""

    def __init__(self, *arguments: Any, fp8: FP8Switch, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.fp8 = fp8

    def forward(self, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        """[length, batch, hidden] -> the same, and Megatron-core's unused context."""
        with self.fp8.layer(self.layer_number):
            return super().forward(self.fp8.entered(self.layer_number, hidden_states), **others)


def block_spec(*, sequence_parallel: bool, fp8: FP8Switch | None) -> tuple[ModuleSpec, type]:
    """The specification of a layer, and the norm at the end.

    Norms are part of the matrices after them, but under sequence parallelism: those norms must sum their gradients over
    TP ranks themselves.
    """
    layer = get_gpt_layer_with_transformer_engine_spec(use_te_activation_func=True)
    parts = layer.submodules
    parts.self_attention.submodules.core_attention = partial(Attention, fp8=fp8)
    if sequence_parallel:
        parts.input_layernorm = parts.pre_mlp_layernorm = RowPartNorm
        parts.self_attention.submodules.linear_qkv = parts.mlp.submodules.linear_fc1 = TEColumnParallelLinear
    if fp8 is not None:
        layer.module, layer.params = FP8Layer, {"fp8": fp8}
    return layer, RowPartNorm if sequence_parallel else TENorm
