"""What tells early that attention is about to go wrong: the largest attention logit and the QK-norm weights by layer.

Logits that grow without bound precede divergence (Dehghani et al. 2023, arXiv:2302.05442, section 3.1).
"""

import math
from functools import partial
from types import TracebackType
from typing import Any, Literal

import deepspeed
import torch
from megatron.core import parallel_state
from torch import Tensor

from model_surgery.shape import ModelShape
from pipeline.recalibration.callback import Callback
from pipeline.recalibration.step import Step

_QUERIES = 128
"""Queries whose logits are held at once: with 32 heads over 4,096 keys that is 64 MiB."""


class LayerMetrics(Callback):
    """Looks into the attention of every layer while it is on; off, it costs nothing.

    It takes the first row of the first forward pass: later micro batches, and layers that are computed again in the
    backward pass, are not looked at.
    """

    def __init__(self, model: torch.nn.Module, shape: ModelShape, *, every: int = 0) -> None:
        """`model` of `shape`, without an engine around it; `every` so many steps of a training, 0 for never."""
        self._every = every
        decoder: Any = model.decoder  # Megatron-core has no types
        self._attentions = [layer.self_attention for layer in decoder.layers]
        self._shape = shape
        self._maxima: dict[int, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def phase_begin(self, step: int, phase: str) -> None:
        if phase == "forward 0" and self._is_due(step):
            self.__enter__()

    def phase_end(self, step: int, phase: str) -> None:
        if phase == "forward 0" and self._is_due(step):
            self.__exit__(None, None, None)

    def after_update(self, step: Step) -> None:
        if self._is_due(step.number):
            step.layers = dict(self.numbers())

    def _is_due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    def __enter__(self) -> "LayerMetrics":
        """Looks at the next forward pass; what was seen before is forgotten."""
        self._maxima = {}
        self._hooks = [
            attention.core_attention.register_forward_pre_hook(partial(self._look, number))
            for number, attention in enumerate(self._attentions)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look(self, number: int, core: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> None:
        if number in self._maxima:
            return
        query, key, _, mask = inputs
        heads, groups = query.shape[2], query.shape[2] // key.shape[2]
        # Heads of zeros stand last; their logits of 0 could hide that all others are below.
        true = true_part(self._shape.heads, heads, parallel_state.get_tensor_model_parallel_rank())
        self._maxima[number] = largest_logit(
            query[:, 0, :true],
            key[:, 0, : true // groups],
            None if mask is None else mask[0, 0],
            core.softmax_scale,
        )

    def numbers(self) -> dict[str, list[float]]:
        """By name one number for every layer; all ranks must call it after a forward pass that was looked at.

        attention_logit_max: over heads, causal pairs of the rows looked at, and ranks; infinite if one is not a number.
        q_norm_weight_mean, _min, _max and the same of k_norm, where the model has such norms: of the weights as the
        forward pass uses them.
        """
        maxima = torch.stack([self._maxima[number] for number in range(len(self._attentions))])
        torch.distributed.all_reduce(maxima, op=torch.distributed.ReduceOp.MAX)
        return {"attention_logit_max": maxima.tolist()} | self._norm_numbers("q") | self._norm_numbers("k")

    def _norm_numbers(self, part: Literal["q", "k"]) -> dict[str, list[float]]:
        kind = getattr(self._shape, f"{part}_norm")
        if kind == "none":
            return {}
        group = parallel_state.get_tensor_model_parallel_group()
        weights = [getattr(attention, f"{part}_layernorm").weight for attention in self._attentions]
        with deepspeed.zero.GatheredParameters(weights):  # does nothing below ZeRO 3
            size = len(weights[0])
            true = size if kind == "per_head" else true_part(self._shape.norm_width(part), size, group.rank())
            own = torch.stack([summary(weight.detach()[:true].float()) for weight in weights])
        ranks = own.new_empty(group.size() * len(own), 4)
        torch.distributed.all_gather_into_tensor(ranks, own, group=group)
        total, count, lowest, highest = ranks.view(group.size(), len(own), 4).unbind(-1)
        numbers = {"mean": total.sum(0) / count.sum(0), "min": lowest.amin(0), "max": highest.amax(0)}
        return {f"{part}_norm_weight_{name}": values.tolist() for name, values in numbers.items()}


def true_part(whole: int, slice_size: int, rank: int) -> int:
    """How many of the `slice_size` entries of a TP rank are the model's, of `whole` in all: padding stands last."""
    return min(max(0, whole - rank * slice_size), slice_size)


def summary(weight: Tensor) -> Tensor:
    """Sum, number of entries, lowest and highest of a vector: [4]. An empty one leaves those of others as they are."""
    lowest, highest = weight.aminmax() if len(weight) else (weight.new_tensor(math.inf), weight.new_tensor(-math.inf))
    return torch.stack([weight.sum(), weight.new_tensor(len(weight)), lowest, highest])


@torch.no_grad()
def largest_logit(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """The largest attention logit of one row, an fp32 scalar; -inf without heads, inf if one is not a number.

    query: [length, heads, head_dim]; key: [length, KV heads, head_dim]. mask: bool [length, length], True where a query
    must not attend, or None for causal. scale: None for 1 / sqrt(head_dim).
    """
    length, heads, width = query.shape
    largest = query.new_full((), -math.inf, dtype=torch.float32)
    if heads == 0:
        return largest
    groups = heads // key.shape[1]
    # [KV heads, length, query heads of the group, head_dim]: so no key is copied for the query heads that share it.
    query = query.unflatten(1, (-1, groups)).transpose(0, 1)
    key = key.permute(1, 2, 0).float()
    for start in range(0, length, _QUERIES):
        end = min(start + _QUERIES, length)
        logits = torch.matmul(query[:, start:end].flatten(1, 2).float(), key[..., :end])
        logits = logits.unflatten(1, (end - start, groups))
        if mask is None:
            hidden = torch.ones(end - start, end, dtype=torch.bool, device=logits.device).triu(start + 1)
        else:
            hidden = mask[start:end, :end]
        largest = torch.maximum(largest, logits.masked_fill_(hidden[:, None], -math.inf).amax())
    return (largest * (width**-0.5 if scale is None else scale)).nan_to_num(
        nan=math.inf, posinf=math.inf, neginf=-math.inf
    )
