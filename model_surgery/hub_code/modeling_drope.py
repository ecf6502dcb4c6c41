"""DroPE models (arXiv:2512.12167): Llama or Qwen2 whose attention knows no positions and may norm queries and keys.

For transformers 5, and late versions of 4.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
)
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen2PreTrainedModel,
)

from .configuration_drope import DroPELlamaConfig, DroPEQwen2Config, normed_parts, rotates


def eager_attention(
    module: "DroPEAttention",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(scaling q k^T + mask) v. q: [batch, heads, queries, head_dim]; k, v: [batch, KV heads, keys, head_dim].

    Returns: output [batch, queries, heads, head_dim], and the attention weights [batch, heads, queries, keys].
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    logits = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask[..., : key.shape[-2]]
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class DroPEAttention(nn.Module):
    """Attention over contents alone: no rotation, unless attention_type lacks the ending nope.

    To be mixed into a stock attention module, from which it takes the four projections.
    """

    config: Any  # DroPELlamaConfig or DroPEQwen2Config
    layer_idx: int
    head_dim: int
    num_key_value_groups: int
    attention_dropout: Any
    scaling: float
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if getattr(self, "sliding_window", None) is not None:
            raise ValueError("use_sliding_window is not supported in DroPE models: every layer sees the whole context")
        parts = normed_parts(config.attention_type)
        widths = {"q": config.num_attention_heads * self.head_dim, "k": config.num_key_value_heads * self.head_dim}
        norms = {part: LlamaRMSNorm(widths[part], eps=config.rms_norm_eps) for part in parts}
        self.q_norm, self.k_norm = norms.get("q"), norms.get("k")
        self.rotates = rotates(config.attention_type)
        if config.softmax_scale is not None:
            self.scaling = config.softmax_scale

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        past_key_value: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """hidden_states [batch, length, hidden] -> the same, and the attention weights where the kernel has them."""
        leading = hidden_states.shape[:-1]
        query, key = self.q_proj(hidden_states), self.k_proj(hidden_states)
        # Over all heads together, hence before they are told apart.
        query = query if self.q_norm is None else self.q_norm(query)
        key = key if self.k_norm is None else self.k_norm(key)
        query, key, value = (
            states.view(*leading, -1, self.head_dim).transpose(1, 2)
            for states in (query, key, self.v_proj(hidden_states))
        )
        if self.rotates:
            assert position_embeddings is not None  # the decoder gives cosines and sines to every layer
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        cache = past_key_values if past_key_values is not None else past_key_value  # the name before transformers 4.56
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        attend = eager_attention if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*leading, -1).contiguous()), weights


class DroPELlamaAttention(DroPEAttention, LlamaAttention):
    """With Llama's projections."""


class DroPEQwen2Attention(DroPEAttention, Qwen2Attention):
    """With Qwen2's projections: biases on q, k and v."""


def replace_attention(model: Any, attention: type[DroPEAttention]) -> None:
    """Gives every layer of a decoder that is being built this class of attention; says which tensors it leaves unread.

    The published checkpoints hold both norms also where attention_type has one of them.
    """
    for index, layer in enumerate(model.layers):
        layer.self_attn = attention(model.config, index)
    unused = set("qk") - set(normed_parts(model.config.attention_type))
    model._keys_to_ignore_on_load_unexpected = [rf"self_attn\.{part}_norm\.weight$" for part in sorted(unused)]


class DroPELlamaModel(LlamaModel):
    """The decoder without its output layer."""

    config: DroPELlamaConfig
    config_class = DroPELlamaConfig

    def __init__(self, config: DroPELlamaConfig) -> None:
        super().__init__(config)
        replace_attention(self, DroPELlamaAttention)
        self.post_init()


class DroPELlamaForCausalLM(LlamaForCausalLM):
    """Llama without positional embeddings."""

    config: DroPELlamaConfig
    config_class = DroPELlamaConfig

    def __init__(self, config: DroPELlamaConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # LlamaForCausalLM's would build a LlamaModel first
        self.model = DroPELlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._keys_to_ignore_on_load_unexpected = self.model._keys_to_ignore_on_load_unexpected
        self.post_init()


class DroPEQwen2Model(Qwen2Model):
    """The decoder without its output layer."""

    config: DroPEQwen2Config
    config_class = DroPEQwen2Config

    def __init__(self, config: DroPEQwen2Config) -> None:
        super().__init__(config)
        replace_attention(self, DroPEQwen2Attention)
        self.post_init()


class DroPEQwen2ForCausalLM(Qwen2ForCausalLM):
    """Qwen2 without positional embeddings."""

    config: DroPEQwen2Config
    config_class = DroPEQwen2Config

    def __init__(self, config: DroPEQwen2Config) -> None:
        Qwen2PreTrainedModel.__init__(self, config)  # Qwen2ForCausalLM's would build a Qwen2Model first
        self.model = DroPEQwen2Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._keys_to_ignore_on_load_unexpected = self.model._keys_to_ignore_on_load_unexpected
        self.post_init()
