"""SwiGLU that keeps for the backward pass what goes into it and nothing else."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu


class SwiGLU(torch.nn.Module):
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202), as the `activation_func` of Megatron-core's MLP.

    Written as an expression, autograd would keep silu(gate) too, and Megatron-core's own adds 0 to `up` and keeps that:
    5 times the feed-forward width for every token and layer, with what the next matrix keeps; here it is 3 times.
    """

    def __init__(self, config: object) -> None:
        super().__init__()

    def forward(self, gate_and_up: Tensor) -> Tensor:
        """[..., 2 * width], gate first -> [..., width]."""
        if torch.compiler.is_compiling():  # then what is kept is the compiler's to decide
            gate, up = gate_and_up.chunk(2, dim=-1)
            return silu(gate) * up
        return _SwiGLU.apply(gate_and_up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        grads = torch.empty_like(gate_and_up)
        of_gate, of_up = grads.chunk(2, dim=-1)
        torch.mul(grad, silu(gate), out=of_up)
        of_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
        return grads
