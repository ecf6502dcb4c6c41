"""A softmax scale for every query head of every layer, multiplied into weights (Wang et al. 2024, arXiv:2404.12224)."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from model_surgery.errors import SurgeryError
from model_surgery.shape import ModelShape
from model_surgery.softmax_scale import scaled_tensors

if TYPE_CHECKING:
    from torch import Tensor

HeadScales = Sequence[Sequence[float]]
"""[layers][query heads] factors of the attention logits."""


def check_head_scales(shape: ModelShape, scales: HeadScales) -> None:
    """Raises: SurgeryError if a model of `shape` cannot bear these scales in its weights."""
    if shape.q_norm == "per_head" and shape.heads > 1:
        raise SurgeryError(
            "queries have a norm over each head, whose weight all heads of a layer share: it can bear no scale per "
            "head; take one scale for all"
        )
    sizes = {len(layer) for layer in scales}
    if len(scales) != shape.layers or sizes != {shape.heads}:
        raise SurgeryError(
            f"{len(scales)} layers of {sorted(sizes)} head scales; the model has {shape.layers} of {shape.heads}"
        )


def fold_heads(tensors: dict[str, "Tensor"], shape: ModelShape, scales: HeadScales) -> dict[str, "Tensor"]:
    """The tensors of a model of `shape`, some or all, with every head's queries multiplied by its scale in fp32.

    A head's queries are head_dim rows of the projection and of its bias, or as many entries of a norm over all heads.
    """
    import torch

    ends, folded = scaled_tensors(shape), dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(ends) and (layer := re.search(r"\.layers\.(\d+)\.", name)):
            factors = torch.tensor(scales[int(layer[1])]).repeat_interleave(shape.head_dim)
            folded[name] = tensor.float() * factors.reshape(-1, *(1,) * (tensor.ndim - 1))
    return folded
