"""The training loss: the mean over the counted tokens of a whole global batch, however it is split.

DeepSpeed averages gradients over micro batches and data-parallel ranks. Where every token counts, the mean of each
micro batch is the right share, since all hold equally many. Where documents are masked they hold unequal numbers of
counted tokens: each micro batch then gives its sum, times one factor for the whole global batch.
"""

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from torch import Tensor

from model_surgery.megatron.model import weighted_loss
from pipeline.recalibration.batches import Batch


def loss_factor(batches: Sequence[Batch]) -> Tensor | None:
    """Micro batches of all ranks / counted tokens of all ranks: what the sum of every micro batch is multiplied with.

    All data-parallel ranks must call it, with all micro batches of a step. None where every token counts.
    """
    counted = [batch.counted.sum() for batch in batches if batch.counted is not None]
    if not counted:
        return None
    totals = torch.stack(counted).sum()
    torch.distributed.all_reduce(totals, group=parallel_state.get_data_parallel_group())
    return len(batches) * parallel_state.get_data_parallel_world_size() / totals


def share_of_loss(model: torch.nn.Module, batch: Batch, factor: Tensor | None) -> Tensor:
    """A micro batch's scalar, whose mean over micro batches and data-parallel ranks is the loss of the global batch."""
    if factor is None or batch.counted is None:
        weights = torch.full(batch.labels.shape, 1 / batch.labels.numel(), device=batch.labels.device)
    else:
        weights = batch.counted * factor
    return weighted_loss(model, batch.tokens, batch.labels, weights, batch.documents)
