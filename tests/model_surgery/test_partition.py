"""The arithmetic of cutting, on numbered elements."""

from collections.abc import Callable

import pytest
import torch

from model_surgery.architectures import Join
from model_surgery.errors import SurgeryError
from model_surgery.partition import join, split, unjoin, unsplit
from model_surgery.shape import ModelShape

HIDDEN = 32


def numbered(*sizes: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + torch.Size(sizes).numel()).reshape(sizes)


def sources(how: Join, shape: ModelShape) -> tuple[torch.Tensor, ...]:
    """Source tensors in which no number occurs twice."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    rows = {
        Join.QKV: (q, kv, kv),
        Join.GATE_UP: (shape.ffn, shape.ffn),
        Join.VOCABULARY: (shape.vocab,),
        Join.HEAD_COLUMNS: (HIDDEN,),
        Join.FFN_COLUMNS: (HIDDEN,),
        Join.HEADS: (q,),
        Join.KV_HEADS: (kv,),
        Join.REPLICATED: (1,),
    }[how]
    columns = {Join.HEAD_COLUMNS: q, Join.FFN_COLUMNS: shape.ffn}.get(how, HIDDEN)
    parts = tuple(numbered(count, columns, start=1 + 100_000 * i) for i, count in enumerate(rows))
    if how in (Join.HEADS, Join.KV_HEADS):
        return (parts[0][:, 0],)
    return (parts[0][0],) if how is Join.REPLICATED else parts


SIZES = {
    "GQA": {"heads": 8, "kv_heads": 4},
    "MHA": {"heads": 8, "kv_heads": 8},
    "odd": {"heads": 15, "kv_heads": 5, "ffn": 67, "vocab": 97},
}


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("how", list(Join))
def test_cutting_is_undone_exactly(
    how: Join, sizes: str, tensor_parallel: int, make_shape: Callable[..., ModelShape]
) -> None:
    shape = make_shape(head_dim=4, **SIZES[sizes])
    parts = sources(how, shape)
    joined = join(parts, how, shape)
    slices = split(joined, how, shape, tensor_parallel)
    assert len(slices) == tensor_parallel
    assert all(piece.is_contiguous() and piece.shape == slices[0].shape for piece in slices)
    torch.testing.assert_close(unsplit(slices, how, shape), joined, rtol=0, atol=0)
    back = unjoin(joined, how, shape)
    assert len(back) == len(parts)
    for part, again in zip(parts, back, strict=True):
        assert torch.equal(part, again)
    if how is not Join.REPLICATED:
        every = torch.cat([piece.flatten() for piece in slices])
        assert torch.equal(every[every > 0].sort().values, torch.cat([part.flatten() for part in parts]))


@pytest.mark.parametrize("how", [Join.QKV, Join.HEAD_COLUMNS, Join.VOCABULARY])
def test_padding_that_is_not_zero_is_refused(how: Join, make_shape: Callable[..., ModelShape]) -> None:
    shape = make_shape(heads=6, kv_heads=3, head_dim=4, vocab=97)
    slices = split(join(sources(how, shape), how, shape), how, shape, 2)
    slices[1][-1, -1] = 1
    with pytest.raises(SurgeryError, match="padding is not zero"):
        unsplit(slices, how, shape)


def test_biases_are_cut_as_the_rows_that_they_belong_to(make_shape: Callable[..., ModelShape]) -> None:
    shape = make_shape(heads=6, kv_heads=3, head_dim=4)
    weights = sources(Join.QKV, shape)
    biases = tuple(part[:, 0] for part in weights)
    rows = split(join(weights, Join.QKV, shape), Join.QKV, shape, 2)
    slices = split(join(biases, Join.QKV, shape), Join.QKV, shape, 2)
    assert all(torch.equal(bias, piece[:, 0]) for bias, piece in zip(slices, rows, strict=True))
    back = unjoin(unsplit(slices, Join.QKV, shape), Join.QKV, shape)
    assert all(torch.equal(part, again) for part, again in zip(biases, back, strict=True))


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 4), (8, 8), (12, 4)])
@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
def test_qkv_rows_of_a_rank_are_query_heads_key_head_value_head_by_group(
    heads: int, kv_heads: int, tensor_parallel: int, make_shape: Callable[..., ModelShape]
) -> None:
    shape = make_shape(heads=heads, kv_heads=kv_heads, head_dim=4)
    q, k, v = sources(Join.QKV, shape)
    slices = split(join((q, k, v), Join.QKV, shape), Join.QKV, shape, tensor_parallel)

    def head(tensor: torch.Tensor, number: int) -> torch.Tensor:
        return tensor[4 * number : 4 * number + 4]

    groups, per_group = kv_heads // tensor_parallel, heads // kv_heads
    for rank, piece in enumerate(slices):
        expected = []
        for group in range(rank * groups, (rank + 1) * groups):
            expected += [head(q, group * per_group + i) for i in range(per_group)]
            expected += [head(k, group), head(v, group)]
        assert torch.equal(piece, torch.cat(expected))


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
def test_a_rank_holds_its_gate_rows_then_its_up_rows(
    tensor_parallel: int, make_shape: Callable[..., ModelShape]
) -> None:
    shape = make_shape(ffn=16)
    gate, up = sources(Join.GATE_UP, shape)
    slices = split(join((gate, up), Join.GATE_UP, shape), Join.GATE_UP, shape, tensor_parallel)
    rows = 16 // tensor_parallel
    for rank, piece in enumerate(slices):
        own = slice(rank * rows, (rank + 1) * rows)
        assert torch.equal(piece, torch.cat([gate[own], up[own]]))


def test_row_and_column_cuts(make_shape: Callable[..., ModelShape]) -> None:
    weight, shape = numbered(4, 6), make_shape(vocab=4, ffn=6)
    assert torch.equal(split(weight, Join.VOCABULARY, shape, 2)[1], weight[2:])
    assert torch.equal(split(weight, Join.FFN_COLUMNS, shape, 2)[1], weight[:, 3:])
    assert all(torch.equal(piece, weight) for piece in split(weight, Join.REPLICATED, shape, 2))
