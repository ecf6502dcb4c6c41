"""What is computed in FP8, and when: Transformer Engine's autocast regions around model, layers and attention."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor
from transformer_engine.common.recipe import DelayedScaling, Format
from transformer_engine.pytorch import autocast
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from model_surgery.megatron.te.settings import FP8


class FP8Switch:
    """FP8 in one model: off until `active` is set, and always off in evaluation, whose numbers are of bf16.

    There is one outermost region for a forward pass, and regions within that switch FP8 on or off for layers and for
    attention. Regions side by side would be wrong: at the end of each outermost one Transformer Engine moves the
    history of every tensor's largest values on, those of other layers included.
    """

    def __init__(self, settings: FP8, layers: int) -> None:
        self.settings = settings
        self.active = False
        self.recipe = DelayedScaling(
            margin=settings.margin,
            fp8_format=Format.HYBRID,
            amax_history_len=settings.amax_history,
            amax_compute_algo=settings.amax_from,
            fp8_dpa=settings.attention,
        )
        self._layers = range(settings.first_layers_bf16 + 1, layers - settings.last_layers_bf16 + 1)
        self._running = False

    @contextmanager
    def model(self, training: bool) -> Iterator[None]:
        """Around a forward pass."""
        self._running = self.active and training
        try:
            with self.region(True) if self._running else nullcontext():
                yield
        finally:
            self._running = False

    def layer(self, number: int) -> AbstractContextManager[Any]:
        """Around layer `number` (1 ...): its matrices in FP8 or not."""
        return self.region(self.settings.linear and number in self._layers) if self._running else nullcontext()

    def attention(self, number: int) -> AbstractContextManager[Any]:
        """Around the products of attention in layer `number`."""
        return self.region(self.settings.attention and number in self._layers) if self._running else nullcontext()

    def entered(self, number: int, hidden_states: Tensor) -> Tensor:
        """What goes into layer `number`.

        The scales of gradients are brought up to date by the backward pass of the first matrix in FP8. Where only
        attention is in FP8, nothing would: so the layer that comes first does it.
        """
        alone = self._running and self.settings.attention and not self.settings.linear
        if alone and number == self._layers.start and torch.is_grad_enabled():
            return _UpdateScales.apply(hidden_states)
        return hidden_states

    def region(self, enabled: bool) -> AbstractContextManager[Any]:
        """A region of Transformer Engine; largest values are taken over all ranks, so scales are the same on all."""
        group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
        return autocast(enabled=enabled, recipe=self.recipe, amax_reduction_group=group)


class _UpdateScales(torch.autograd.Function):
    """Does nothing forward; backward, when all layers after it are done, takes the gradients' new scales."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor) -> Tensor:
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        FP8GlobalStateManager.reduce_and_update_fp8_tensors(forward=False)
        return grad
