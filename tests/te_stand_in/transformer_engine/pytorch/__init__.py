from transformer_engine.pytorch import distributed, ops
from transformer_engine.pytorch.attention import DotProductAttention
from transformer_engine.pytorch.module import GroupedLinear, LayerNorm, LayerNormLinear, Linear, RMSNorm
from transformer_engine.pytorch.quantization import autocast

fp8_autocast = autocast
__all__ = [
    "DotProductAttention",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "autocast",
    "distributed",
    "fp8_autocast",
    "ops",
]
