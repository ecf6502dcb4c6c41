"""Layers and loss made into fused kernels by torch.compile (https://docs.pytorch.org/docs/stable/torch.compiler.html).

What Transformer Engine's modules fuse by hand, norms, SwiGLU and sums, for machines without it.
"""

import warnings
from functools import cache
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from model_surgery.megatron.output_layer import OutputLayer, loss_and_gradient
from model_surgery.megatron.qk_norm import FullWidthNorm


class CompiledLayer(TransformerLayer):
    """A layer that is one graph in training; all layers share what is compiled.

    In evaluation, whose rows have other lengths, and where a hook looks into its attention, it is torch's: each would
    be compiled anew.
    """

    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, **others)
        if self.config.tensor_model_parallel_size > 1:
            for norm in (self.self_attention.q_layernorm, self.self_attention.k_layernorm):
                if isinstance(norm, FullWidthNorm):  # sums over ranks in place within, which the compiler cannot trace
                    norm.keep_out_of_graphs()

    def forward(self, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        """[length, batch, hidden] -> the same, and Megatron-core's unused context."""
        if self.self_attention.core_attention.is_watched or not torch.is_grad_enabled():
            return super().forward(hidden_states, **others)
        # Of a batch of one the embeddings come with other strides than what layers make: it would be another graph.
        hidden_states = hidden_states.flatten().view(hidden_states.shape)
        return _compiled(TransformerLayer.forward)(self, hidden_states, **others)


def compile_loss(output_layer: OutputLayer) -> None:
    """Takes losses and their gradients from the logits in fused passes."""
    output_layer.loss_and_gradient = _compiled(loss_and_gradient)


def reason_against() -> str | None:
    """Why torch.compile does not work in this process (no compiler, no Triton); None if it does."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
    try:
        _compiled(_trial)(torch.ones(2, device=device))
    except Exception as error:  # whatever compilers raise
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def _trial(x: Tensor) -> Tensor:
    return x.square().sum()


@cache
def _compiled(function: Any) -> Any:
    # Megatron-core warns in every pass, on rank 0 alone, where it is not told its group: graphs would end there.
    torch._dynamo.config.ignore_logging_functions.add(warnings.warn)
    return torch.compile(function, dynamic=False)
