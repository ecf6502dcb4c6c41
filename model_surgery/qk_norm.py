"""Putting an RMSNorm on queries and keys at surgery: which tensors that adds."""

import torch
from torch import Tensor

from model_surgery.architectures import source_shapes
from model_surgery.errors import SurgeryError
from model_surgery.shape import ModelShape, NormKind


def with_qk_norm(shape: ModelShape, kind: NormKind, name: str, *, field: str = "surgery.qk_norm") -> ModelShape:
    """The shape of the model with norms of this kind on queries and keys; with "none" as it is.

    `name` of the model and `field` of the recipe are for the error.

    Raises: SurgeryError if it has such norms already.
    """
    if kind == "none":
        return shape
    if shape.q_norm != "none" or shape.k_norm != "none":
        raise SurgeryError(
            f"{field} = {kind!r}: {name} has norms already (q: {shape.q_norm}, k: {shape.k_norm}); use 'none', "
            "which keeps them"
        )
    return shape.model_copy(update={"q_norm": kind, "k_norm": kind})


def initial_norms(source: ModelShape, shape: ModelShape) -> dict[str, Tensor]:
    """Weights of ones for every norm that `shape` has and its source has not, as the published models began.

    By their Hugging Face names, in the source's dtype.
    """
    known, dtype = source_shapes(source), getattr(torch, source.dtype)
    added = {name: size for name, size in source_shapes(shape).items() if name not in known}
    return {name: torch.ones(size, dtype=dtype) for name, size in added.items()}
