from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from transformer_engine.pytorch.module.base import TransformerEngineBaseModule
from transformer_engine.pytorch.quantization import FP8GlobalStateManager


class DotProductAttention(TransformerEngineBaseModule):
    computed: ClassVar[list[tuple[bool, int]]] = []
    """(in FP8, head size) of every call."""

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        num_gqa_groups: int | None = None,
        softmax_scale: float | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        self.channels = kv_channels[0] if isinstance(kv_channels, tuple) else kv_channels
        self.softmax_scale = self.channels**-0.5 if softmax_scale is None else softmax_scale

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, attn_mask_type: str
    ) -> Tensor:
        assert mask is None and attn_mask_type == "causal"
        assert query.shape[-1] == key.shape[-1] == value.shape[-1] == self.channels
        self.begin(num_gemms=3)
        self.fp8 = self.fp8 and FP8GlobalStateManager.quantization_state.fp8_recipe.fp8_dpa
        self.computed.append((self.fp8, self.channels))
        if self.fp8:
            if self.training and self.channels != 128:
                raise ValueError("No dot product attention backend is available for the provided inputs")
            query, key, value = (self.quantized(heads, slot) for slot, heads in enumerate((query, key, value)))
        rows = (heads.permute(1, 2, 0, 3) for heads in (query, key, value))
        out = scaled_dot_product_attention(*rows, is_causal=True, scale=self.softmax_scale, enable_gqa=True)
        if self.fp8:
            out = self.gradient_quantized(self.quantized(out, 3), 0)
        return out.permute(2, 0, 1, 3).flatten(2)
