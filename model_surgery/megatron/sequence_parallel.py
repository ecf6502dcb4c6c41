"""Sequence parallelism: what lies outside of attention and feed-forward is cut along the row over the TP ranks.

Korthikanti et al. 2022 (arXiv:2205.05198, section 4.2.2). Megatron-core's linear layers gather and scatter the rows;
missing are norms whose gradients are right under an engine that does not know of them.
"""

import torch
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from torch import Tensor


class RowPartNorm(torch.nn.RMSNorm):
    """RMSNorm over the hidden size, on this rank's part of every row.

    The weight is the same on all TP ranks and sees a part of the tokens on each: its gradient is the sum over ranks,
    which the backward pass takes itself.
    """

    def __init__(self, config: object, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[length / TP, batch, hidden] -> the same."""
        weight = copy_to_tensor_model_parallel_region(self.weight)
        return torch.nn.functional.rms_norm(x, self.normalized_shape, weight, self.eps)


def forget_random_states() -> None:
    """Lets Megatron-core keep no random states for the parts of a row; nothing is drawn, and without CUDA it could not.

    Its tracker for inference does just that.
    """
    initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
