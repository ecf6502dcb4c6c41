"""Cutting and joining single tensors; pure functions, each with its inverse.

`join` gives one tensor whose partition axis is whole and visible; `split` pads that axis with zeros until it divides
and cuts it into one 1-D or 2-D slice per TP rank. `unsplit` and `unjoin` undo them exactly.
"""

import torch
from torch import Tensor

from model_surgery.architectures import Join
from model_surgery.errors import SurgeryError
from model_surgery.shape import ModelShape

PARTITION_AXIS = {
    Join.VOCABULARY: 0,
    Join.QKV: 0,
    Join.HEADS: 0,
    Join.KV_HEADS: 0,
    Join.HEAD_COLUMNS: 1,
    Join.GATE_UP: 1,
    Join.FFN_COLUMNS: 1,
}
"""The axis of a joined tensor that is cut."""


def join(parts: tuple[Tensor, ...], how: Join, shape: ModelShape) -> Tensor:
    """Source tensors -> joined tensor.

    QKV: [kv_heads, (heads / kv_heads + 2) * head_dim, hidden], the order of Megatron-core's `linear_qkv`; of biases
    without the last axis. GATE_UP: [2, ffn, hidden]. Others: the one source as it is.
    """
    if how is Join.QKV:
        groups = [part.reshape(shape.kv_heads, -1, *part.shape[1:]) for part in parts]
        return torch.cat(groups, dim=1)
    if how is Join.GATE_UP:
        return torch.stack(parts)
    (only,) = parts
    return only


def unjoin(joined: Tensor, how: Join, shape: ModelShape) -> tuple[Tensor, ...]:
    """The inverse of `join`."""
    if how is Join.QKV:
        rows = shape.heads // shape.kv_heads * shape.head_dim
        parts = joined.split([rows, shape.head_dim, shape.head_dim], dim=1)
        return tuple(part.flatten(0, 1) for part in parts)
    if how is Join.GATE_UP:
        return tuple(joined.unbind(0))
    return (joined,)


def split(joined: Tensor, how: Join, shape: ModelShape, tensor_parallel: int) -> list[Tensor]:
    """Joined tensor of a model of `shape` -> the contiguous slice of every TP rank, as Megatron-core holds it."""
    if how is Join.REPLICATED:
        return [joined] * tensor_parallel
    axis = PARTITION_AXIS[how]
    surplus = _axis_size(how, shape.padded(tensor_parallel)) - joined.shape[axis]
    if surplus:
        zeros = [*joined.shape[:axis], surplus, *joined.shape[axis + 1 :]]
        joined = torch.cat([joined, joined.new_zeros(zeros)], dim=axis)
    slices = joined.chunk(tensor_parallel, dim=axis)
    return [(piece.flatten(0, 1) if _has_groups(how) else piece).contiguous() for piece in slices]


def unsplit(slices: list[Tensor], how: Join, shape: ModelShape) -> Tensor:
    """The inverse of `split`; of a replicated tensor the first rank's copy is taken.

    Raises: SurgeryError if what was added as padding is not zero.
    """
    if how is Join.REPLICATED:
        return slices[0]
    if how is Join.QKV:
        rows = (shape.heads // shape.kv_heads + 2) * shape.head_dim
        slices = [piece.reshape(-1, rows, *piece.shape[1:]) for piece in slices]
    elif how is Join.GATE_UP:
        slices = [piece.reshape(2, -1, *piece.shape[1:]) for piece in slices]
    axis = PARTITION_AXIS[how]
    padded = torch.cat(slices, dim=axis)
    size = _axis_size(how, shape)
    if padded.narrow(axis, size, padded.shape[axis] - size).any():
        raise SurgeryError("its padding is not zero, as it is made and stays in training; it was written by other code")
    return padded.narrow(axis, 0, size)


def _has_groups(how: Join) -> bool:
    """Whether a joined tensor has an axis more than its slices."""
    return how in (Join.QKV, Join.GATE_UP)


def _axis_size(how: Join, shape: ModelShape) -> int:
    """Length of the partition axis of a joined tensor in a model of `shape`."""
    return {
        Join.VOCABULARY: shape.vocab,
        Join.QKV: shape.kv_heads,
        Join.HEADS: shape.heads * shape.head_dim,
        Join.KV_HEADS: shape.kv_heads * shape.head_dim,
        Join.HEAD_COLUMNS: shape.heads * shape.head_dim,
        Join.GATE_UP: shape.ffn,
        Join.FFN_COLUMNS: shape.ffn,
    }[how]
