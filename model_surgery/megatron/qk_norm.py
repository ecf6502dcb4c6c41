"""RMSNorm of queries and keys in Megatron-core's attention, right under tensor parallelism.

Each is a module that Megatron-core's `SelfAttention` builds as its `q_layernorm` or `k_layernorm` and calls with
[length, batch, heads of this rank, head_dim]. What tensor parallelism scatters over ranks of their gradients is summed
by the backward pass itself (conjugate communication), so that no engine needs to know of these weights.
"""

import torch
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, reduce_from_tensor_model_parallel_region
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from model_surgery.shape import NORM_PARTS, ModelShape


class FullWidthNorm(torch.nn.Module):
    """One RMSNorm over all heads together: x / sqrt(sum(x^2) / width + eps) * weight, as the published models have it.

    `width` is heads * head_dim of the whole model without padding, whatever heads of zeros there are beside it; this
    rank holds `heads` of them, padding included, and their part of the weight.
    """

    def __init__(self, hidden_size: int, config: object, eps: float, *, heads: int, width: int) -> None:
        super().__init__()
        self.eps, self.width = eps, width
        self.weight = torch.nn.Parameter(torch.ones(heads * hidden_size))

    def keep_out_of_graphs(self) -> None:
        """From now on torch.compile leaves this norm as it is, in whatever it is part of."""
        self.forward = torch.compiler.disable(self.forward)  # type: ignore[method-assign]  # this one norm's alone

    def forward(self, x: Tensor) -> Tensor:
        """[length, batch, heads, head_dim] -> the same."""
        flat = x.flatten(2).float()
        squares = flat.square().sum(-1, keepdim=True)
        # Forward: the sum over ranks. Backward: every rank's output depends on every rank's part, so again the sum.
        total = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(squares))
        normed = flat * torch.rsqrt(total / self.width + self.eps)
        return (normed.type_as(x) * self.weight).view_as(x)


class PerHeadNorm(torch.nn.Module):
    """RMSNorm over each head alone, one weight of head_dim for all heads (as in Qwen3)."""

    def __init__(self, hidden_size: int, config: object, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """[length, batch, heads, head_dim] -> the same."""
        # Every rank norms heads of its own with the one weight: its gradient is the sum over ranks.
        weight = copy_to_tensor_model_parallel_region(self.weight)
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, self.eps)


def norm_specs(shape: ModelShape, tensor_parallel: int) -> dict[str, ModuleSpec | type]:
    """The submodules of Megatron-core's self-attention that norm queries and keys in a model of `shape`."""
    padded = shape.padded(tensor_parallel)
    heads = {"q": padded.heads, "k": padded.kv_heads}
    specs: dict[str, ModuleSpec | type] = {}
    for part in NORM_PARTS:
        kind = shape.norm(part)
        if kind == "full":
            sizes = {"heads": heads[part] // tensor_parallel, "width": shape.norm_width(part)}
            specs[f"{part}_layernorm"] = ModuleSpec(module=FullWidthNorm, params=sizes)
        elif kind == "per_head":
            specs[f"{part}_layernorm"] = PerHeadNorm
    return specs
