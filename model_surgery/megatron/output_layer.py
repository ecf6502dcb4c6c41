"""The output layer and the loss in one: logits are never held for more than a part of the tokens."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from model_surgery.megatron.logit_parts import part_tokens

LossAndGradient = Callable[[Tensor, Tensor, Tensor, ProcessGroup], Tensor]


def loss_and_gradient(logits: Tensor, labels: Tensor, token_weights: Tensor, group: ProcessGroup) -> Tensor:
    """The weighted sum of the cross-entropies of `labels` [tokens]; `logits` [tokens, words] become its gradient.

    Logits are of this rank's words, and so is a label's number, which lies outside if it is another rank's word. All
    is computed in fp32.
    """
    given, logits = logits, logits.float()
    is_ours = (labels >= 0) & (labels < logits.shape[1])
    index = torch.where(is_ours, labels, 0).unsqueeze(1)
    at_label = torch.where(is_ours.unsqueeze(1), logits.gather(1, index), 0)
    highest = logits.amax(1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(1, keepdim=True)
    log_total = highest + total.log()
    if group.size() > 1:
        both = torch.stack([log_total, at_label])
        ranks = both.new_empty(group.size() * 2, *both.shape[1:])
        torch.distributed.all_gather_into_tensor(ranks, both, group=group)
        log_total, at_label = ranks[::2].logsumexp(0), ranks[1::2].sum(0)
    logits.mul_((highest - log_total).exp_().mul_(token_weights.unsqueeze(1)))
    logits.scatter_add_(1, index, torch.where(is_ours, -token_weights, 0).unsqueeze(1))
    if given is not logits:
        given.copy_(logits)
    return torch.dot((log_total - at_label).squeeze(1), token_weights)


class OutputLayer(ColumnParallelLinear):
    """Megatron-core's, which with labels gives the weighted sum of the losses in place of the logits.

    It stands in the place of the `stock` layer that GPTModel has made, and takes over its weight; there is none where
    it is tied to the embedding. `true_size`: rows of this rank's weight that are words; the others, which stand last,
    are padding.
    """

    def __init__(self, stock: ColumnParallelLinear, true_size: int) -> None:
        super().__init__(
            stock.input_size,
            stock.output_size,
            config=stock.config,
            init_method=stock.config.init_method,
            bias=False,
            gather_output=stock.gather_output,
            skip_weight_param_allocation=True,
            tp_group=stock.tp_group,
        )
        self.weight = stock.weight
        self.true_size = true_size
        self.loss_and_gradient: LossAndGradient = loss_and_gradient
        """Or what a compiler has made of it."""

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        *,
        labels: Tensor | None = None,
        token_weights: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """With `labels` and `token_weights` [length, batch]: a scalar, the sum of weight times cross-entropy (nats)."""
        if labels is None:
            return super().forward(input_, weight, runtime_gather_output)
        weight = self.weight if weight is None else weight
        if self.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(input_, group=self.tp_group)
        else:
            hidden = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        return _WeightedLoss.apply(
            hidden, weight, labels, token_weights, self.true_size, self.tp_group, self.loss_and_gradient
        )


class _WeightedLoss(torch.autograd.Function):
    """Takes the gradients with the loss, while the logits of a part are there; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        token_weights: Tensor,
        true_size: int,
        group: ProcessGroup,
        loss_and_gradient: LossAndGradient,
    ) -> Tensor:
        rows, words = hidden.reshape(-1, hidden.shape[-1]), weight[:true_size]
        labels, token_weights = labels.reshape(-1) - group.rank() * len(weight), token_weights.reshape(-1)
        size = min(len(rows), part_tokens(len(weight), rows.device.type))
        # In bf16 a sum over parts would be rounded with each: all gradients are kept, in half the bytes of fp32.
        keeps_all = rows.dtype is not torch.float32
        held = rows.new_empty(len(rows) if keeps_all else size, true_size)
        of_rows, of_weight = torch.empty_like(rows), torch.empty_like(weight)
        total = torch.zeros((), device=rows.device)
        of_weight[true_size:] = 0
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            logits = held[part] if keeps_all else held[: len(rows[part])]
            torch.mm(rows[part], words.t(), out=logits)
            total += loss_and_gradient(logits, labels[part], token_weights[part], group)
            if not keeps_all:
                torch.mm(logits, words, out=of_rows[part])
                torch.addmm(
                    of_weight[:true_size], logits.t(), rows[part], beta=float(start > 0), out=of_weight[:true_size]
                )
        if keeps_all:
            torch.mm(held, words, out=of_rows)
            torch.mm(held.t(), rows, out=of_weight[:true_size])
        ctx.save_for_backward(of_rows.view_as(hidden), of_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden.mul_(grad), of_weight.mul_(grad), *[None] * 5
