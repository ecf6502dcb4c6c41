"""Activation recomputation: of a layer only what goes in is kept, and the layer is computed again when it is needed.

Megatron-core's own saves and restores the random states of CUDA around every layer, which needs CUDA; here nothing
is drawn, so torch's checkpoint (https://docs.pytorch.org/docs/stable/checkpoint.html) is all that it takes.
"""

from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class RecomputedLayer(TransformerLayer):
    """A transformer layer whose forward pass runs once more in the backward pass; losses and gradients stay the same.

    Communication within the layer runs again too, on all ranks in the same order.
    """

    def forward(self, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        """[length, batch, hidden] -> the same, and Megatron-core's unused context."""
        if not torch.is_grad_enabled():
            return super().forward(hidden_states, **others)
        # Hooks that gather weights (ZeRO 3) expect of every module that begins that it also ends.
        return checkpoint(
            self._computed, hidden_states, use_reentrant=False, preserve_rng_state=False, early_stop=False, **others
        )

    def _computed(self, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        output, context = super().forward(hidden_states, **others)
        return _RecomputeFirst.apply(output), context


class _RecomputeFirst(torch.autograd.Function):
    """Does nothing, but needs something that was not kept: so all of the layer is there before its backward begins.

    Left to the layer's last matrix, recomputation would come after that one's weights have been gathered for its
    backward, and release them.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.save_for_backward(output.new_empty(0))
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        _ = ctx.saved_tensors
        return grad
