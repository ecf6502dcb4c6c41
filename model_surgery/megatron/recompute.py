"""Activation recomputation: of a layer only what goes in is kept, and the layer is computed again when it is needed.

Megatron-core's own saves and restores the random states of CUDA around every layer, which needs CUDA; here nothing
is drawn, so torch's checkpoint (https://docs.pytorch.org/docs/stable/checkpoint.html) is all that it takes.
"""

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class RecomputedLayer(TransformerLayer):
    """A transformer layer whose forward pass runs once more in the backward pass; losses and gradients stay the same.

    Communication within the layer runs again too, on all ranks in the same order.
    """

    def forward(self, hidden_states: Tensor, **others: object) -> tuple[Tensor, None]:
        """[length, batch, hidden] -> the same, and Megatron-core's unused context."""
        if not torch.is_grad_enabled():
            return super().forward(hidden_states, **others)
        # To its end also the second time: ZeRO 3 counts on it that every module that begins comes to its end.
        settings = {"use_reentrant": False, "preserve_rng_state": False, "early_stop": False}
        return checkpoint(super().forward, hidden_states, **settings, **others)
