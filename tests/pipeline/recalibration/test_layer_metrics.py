"""The arithmetic of the numbers of layers; what the processes of a training find stands in test_validation.py."""

import math

import pytest
import torch

from model_surgery.megatron.attention import document_mask
from pipeline.recalibration.metrics import layers
from pipeline.recalibration.metrics.layers import largest_logit, summary, true_part

LENGTH, HEADS, WIDTH = 11, 4, 8


def entry_by_entry(query: torch.Tensor, key: torch.Tensor, documents: torch.Tensor, scale: float) -> float:
    """The largest of the logits of all heads and of all pairs within a document, the key not after the query."""
    groups = query.shape[1] // key.shape[1]
    return max(
        (query[row, head] @ key[column, head // groups]).item() * scale
        for head in range(HEADS)
        for row in range(LENGTH)
        for column in range(row + 1)
        if documents[row] == documents[column]
    )


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("queries", [3, 128])
@pytest.mark.parametrize("masked", [False, True])
def test_the_largest_logit_entry_by_entry(
    kv_heads: int, queries: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest of all stands where it must not count: at a later key, or one of another document."""
    monkeypatch.setattr(layers, "_QUERIES", queries)
    draw = torch.Generator().manual_seed(kv_heads)
    query, key = (torch.randn(LENGTH, n, WIDTH, generator=draw) for n in (HEADS, kv_heads))
    documents = torch.tensor([0] * 5 + [1] * 6) if masked else torch.zeros(LENGTH)
    seen_by, hidden_from, column = ([3, 4], 7, 3) if masked else ([10], 2, 10)
    key[column] = 1000 * query[hidden_from, 0]
    query[seen_by] = -query[hidden_from, 0]
    mask = document_mask(documents[None])[0, 0] if masked else None
    for dtype in (torch.float32, torch.bfloat16):
        q, k = query.to(dtype), key.to(dtype)
        expected = entry_by_entry(q.float(), k.float(), documents, 0.25)
        assert expected < 20 < 100 < (q[hidden_from, 0] @ k[column, 0]) * 0.25
        assert largest_logit(q, k, mask, 0.25).item() == pytest.approx(expected, rel=1e-6)
        assert largest_logit(q, k, mask, None).item() == pytest.approx(expected * 4 / WIDTH**0.5, rel=1e-6)


def test_what_is_not_a_number_is_infinite_and_no_heads_are_nothing() -> None:
    query = torch.ones(LENGTH, 1, WIDTH)
    query[4] = math.nan
    assert largest_logit(query, torch.ones(LENGTH, 1, WIDTH), None, None) == math.inf
    assert largest_logit(query[:, :0], query[:, :0], None, None) == -math.inf


def test_ranks_that_hold_padding_alone_say_nothing() -> None:
    """Five entries over three ranks of two, and the same over five ranks."""
    assert [true_part(5, 2, rank) for rank in range(3)] == [2, 2, 1]
    assert [true_part(5, 2, rank) for rank in range(5)] == [2, 2, 1, 0, 0]
    parts = torch.stack([summary(torch.tensor(values)) for values in ([3.0, -1.0], [4.0])] + [summary(torch.ones(0))])
    assert parts.tolist() == [[2, 2, -1, 3], [4, 1, 4, 4], [0, 0, math.inf, -math.inf]]
