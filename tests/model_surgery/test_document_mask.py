"""Attention within documents: against transformers with an explicit mask, and against every document alone."""

from pathlib import Path

import pytest
import torch

from model_surgery.layout import Layout, read_rank
from model_surgery.megatron.attention import SDPAttention, document_mask
from model_surgery.megatron.model import build_model, load_slices, token_losses

pytestmark = pytest.mark.usefixtures("megatron_of_one")

LENGTHS = ((1, 9, 4, 10), (24,), (7, 17))  # of the documents in each row


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, labels and documents of three rows, each [3, 24]."""
    row = torch.randint(96, (3, 25), generator=torch.Generator().manual_seed(3))
    documents = [torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)) for lengths in LENGTHS]
    return row[:, :-1], row[:, 1:], torch.stack(documents).int()


def loaded(folder: Path, position_embedding: str) -> torch.nn.Module:
    layout = Layout.load(folder)
    model = build_model(layout.shape, position_embedding=position_embedding)
    load_slices(model, read_rank(folder, layout, 0))
    return model


def test_the_mask_by_hand() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1], [0, 0, 0]]))
    assert mask.shape == (2, 1, 3, 3) and mask.dtype is torch.bool
    may = (~mask[:, 0]).int().tolist()
    assert may == [[[1, 0, 0], [1, 1, 0], [0, 0, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.25])
def test_attention_is_softmax_attention_within_a_document(kv_heads: int, scale: float | None) -> None:
    length, heads, width = 6, 4, 8
    q, k, v = (torch.randn(length, 2, n, width, dtype=torch.float64) for n in (heads, kv_heads, kv_heads))
    documents = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    got = SDPAttention(config=None, softmax_scale=scale)(q, k, v, attention_mask=document_mask(documents))
    for batch in range(2):
        for head in range(heads):
            key, value = (x[:, batch, head // (heads // kv_heads)] for x in (k, v))
            scores = q[:, batch, head] @ key.T * (width**-0.5 if scale is None else scale)
            for row in range(length):
                seen = [j for j in range(row + 1) if documents[batch, j] == documents[batch, row]]
                expected = scores[row, seen].softmax(-1) @ value[seen]
                torch.testing.assert_close(got[row, batch, head * width : (head + 1) * width], expected)


@pytest.mark.parametrize("position_embedding", ["none", "rope"])
def test_losses_and_gradients_are_those_of_every_document_alone(
    position_embedding: str, layouts: dict[int, Path], rows: tuple[torch.Tensor, ...]
) -> None:
    tokens, labels, documents = rows
    model = loaded(layouts[1], position_embedding)
    losses = token_losses(model, tokens, labels, documents)
    losses.sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            alone = slice(start, start + length)
            expected = token_losses(model, tokens[row : row + 1, alone], labels[row : row + 1, alone])
            torch.testing.assert_close(losses[row, alone], expected[0], rtol=0, atol=1e-5)
            expected.sum().backward()
            start += length
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-4)
    plain = token_losses(model, tokens, labels)
    assert torch.equal(plain[1], token_losses(model, tokens[1:2], labels[1:2])[0])
    assert (plain[0] - losses[0]).abs().max() > 0.1  # the mask matters


@pytest.mark.parametrize("position_embedding", ["none", "rope"])
def test_losses_are_those_of_transformers_with_an_explicit_mask(
    position_embedding: str, layouts: dict[int, Path], tiny_model: Path, rows: tuple[torch.Tensor, ...]
) -> None:
    from transformers import AutoModelForCausalLM

    tokens, labels, documents = rows
    source = AutoModelForCausalLM.from_pretrained(tiny_model)
    if position_embedding == "none":
        source.model.rotary_emb.inv_freq.zero_()  # every angle 0: rotation by the identity
    may = torch.zeros(3, 1, 24, 24, dtype=torch.bool)
    for row in range(3):
        for query in range(24):
            for key in range(query + 1):
                may[row, 0, query, key] = documents[row, query] == documents[row, key]
    mask = torch.zeros(may.shape).masked_fill(~may, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits = source(tokens, attention_mask=mask, use_cache=False).logits
        losses = token_losses(loaded(layouts[1], position_embedding), tokens, labels, documents)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(losses.flatten(), expected, rtol=0, atol=1e-5)
