"""Cutting and joining single tensors; pure functions, each with its inverse.

`join` gives one tensor whose partition axis is whole and visible; `split` cuts that axis into one 1-D or 2-D slice per
TP rank. `unsplit` and `unjoin` undo them exactly.
"""

import torch
from torch import Tensor

from model_surgery.architectures import Join
from model_surgery.shape import ModelShape

_PARTITION_AXIS = {Join.ROWS: 0, Join.COLUMNS: 1, Join.QKV: 0, Join.GATE_UP: 1}


def join(parts: tuple[Tensor, ...], how: Join, shape: ModelShape) -> Tensor:
    """Source tensors -> joined tensor.

    QKV: [kv_heads, (heads / kv_heads + 2) * head_dim, hidden], the order of Megatron-core's `linear_qkv`.
    GATE_UP: [2, ffn, hidden]. Others: the one source as it is.
    """
    if how is Join.QKV:
        groups = [part.reshape(shape.kv_heads, -1, part.shape[-1]) for part in parts]
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
        return tuple(part.reshape(-1, joined.shape[-1]) for part in parts)
    if how is Join.GATE_UP:
        return tuple(joined.unbind(0))
    return (joined,)


def split(joined: Tensor, how: Join, tensor_parallel: int) -> list[Tensor]:
    """Joined tensor -> the contiguous slice of every TP rank, as Megatron-core holds it."""
    if how is Join.REPLICATED:
        return [joined] * tensor_parallel
    slices = joined.chunk(tensor_parallel, dim=_PARTITION_AXIS[how])
    return [piece.reshape(-1, piece.shape[-1]).contiguous() for piece in slices]


def unsplit(slices: list[Tensor], how: Join, shape: ModelShape) -> Tensor:
    """The inverse of `split`; of a replicated tensor the first rank's copy is taken."""
    if how is Join.REPLICATED:
        return slices[0]
    if how is Join.QKV:
        rows = (shape.heads // shape.kv_heads + 2) * shape.head_dim
        slices = [piece.reshape(-1, rows, piece.shape[-1]) for piece in slices]
    elif how is Join.GATE_UP:
        slices = [piece.reshape(2, -1, piece.shape[-1]) for piece in slices]
    return torch.cat(slices, dim=_PARTITION_AXIS[how])
