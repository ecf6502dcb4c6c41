from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import linear, rms_norm

from transformer_engine.pytorch.module.base import TransformerEngineBaseModule
from transformer_engine.pytorch.quantization import FP8GlobalStateManager


class RMSNorm(torch.nn.Module):
    def __init__(
        self, hidden_size: int, eps: float, params_dtype: torch.dtype, device: str = "cpu", **unused: Any
    ) -> None:
        super().__init__()
        self.eps, self.weight = eps, Parameter(torch.ones(hidden_size, dtype=params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)

    def get_extra_state(self) -> None:
        return None

    def set_extra_state(self, state: object) -> None:
        """As in Transformer Engine, which has one here too and keeps nothing in it."""


class LayerNorm(RMSNorm):
    """Not used."""


class Linear(TransformerEngineBaseModule):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        parallel_mode: str,
        tp_size: int,
        bias: bool,
        params_dtype: torch.dtype,
        sequence_parallel: bool,
        return_bias: bool = False,
        **unused: Any,
    ) -> None:
        super().__init__()
        column = parallel_mode == "column"
        rows, columns = (out_features // tp_size, in_features) if column else (out_features, in_features // tp_size)
        self.in_features, self.out_features = in_features, out_features
        self.parallel_mode, self.tp_size, self.sequence_parallel = parallel_mode, tp_size, sequence_parallel
        self.return_bias, self.use_bias = return_bias, bias
        self.weight = Parameter(torch.empty(rows, columns, dtype=params_dtype))
        self.weight.tensor_model_parallel, self.weight.partition_dim = True, 0 if column else 1
        if bias:
            self.bias = Parameter(torch.zeros(rows, dtype=params_dtype))
            self.bias.tensor_model_parallel, self.bias.partition_dim = True, 0

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        from megatron.core import tensor_parallel  # which imports this package itself

        assert is_first_microbatch is None, "a copy of the weight in FP8 would be used when it is out of date"
        self.begin()
        if self.parallel_mode == "column" and self.sequence_parallel:
            x = tensor_parallel.gather_from_sequence_parallel_region(x)
        elif self.parallel_mode == "column":
            x = tensor_parallel.copy_to_tensor_model_parallel_region(x)
        weight = self.weight
        if self.fp8:
            assert (x.numel() // x.shape[-1]) % 16 == 0 and all(size % 16 == 0 for size in weight.shape)
            first = torch.is_grad_enabled() and FP8GlobalStateManager.is_first_fp8_module()
            # The gradient of the result is rounded in the backward pass; scales are updated when it is over.
            x = _WhenDone.apply(x) if first else x
            out = linear(self.quantized(x, 0), self.quantized(weight, 1), getattr(self, "bias", None))
            out = self.gradient_quantized(out, 0)
        else:
            out = linear(x, weight, getattr(self, "bias", None))
        if self.parallel_mode == "row":
            combine = (
                tensor_parallel.reduce_scatter_to_sequence_parallel_region
                if self.sequence_parallel
                else tensor_parallel.reduce_from_tensor_model_parallel_region
            )
            out = combine(out)
        return out


class _WhenDone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        FP8GlobalStateManager.reduce_and_update_fp8_tensors(forward=False)
        return grad


class LayerNormLinear(Linear):
    def __init__(self, in_features: int, out_features: int, *, eps: float, normalization: str, **others: Any) -> None:
        super().__init__(in_features, out_features, **others)
        assert normalization == "RMSNorm"
        self.eps = eps
        weight = self._parameters.pop("weight")  # comes after the norm's, as in Transformer Engine
        self.layer_norm_weight = Parameter(torch.ones(in_features, dtype=weight.dtype))
        self.weight = weight

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        normed = rms_norm(x, self.layer_norm_weight.shape, self.layer_norm_weight, self.eps)
        return super().forward(normed, is_first_microbatch)


class GroupedLinear(TransformerEngineBaseModule):
    """Not used."""
