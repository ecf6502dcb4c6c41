"""The output layer and the loss in parts, in a process group of one; more ranks are trained in tests/pipeline."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_surgery.layout import Layout, read_rank
from model_surgery.megatron import logit_parts
from model_surgery.megatron.model import (
    build_model,
    full_logits,
    load_slices,
    mask_padded_vocabulary,
    token_losses,
    weighted_loss,
)

pytestmark = pytest.mark.usefixtures("megatron_of_one")


@pytest.fixture
def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and weights, a third of which are zero, [3, 20]."""
    draw = torch.Generator().manual_seed(0)
    tokens, labels = (torch.randint(90, (3, 20), generator=draw) for _ in range(2))
    weights = torch.rand(3, 20, generator=draw)
    return tokens, labels, weights.masked_fill(torch.arange(20) % 3 == 0, 0)


def loaded(folder: Path, dtype: torch.dtype, vocab: int = 96) -> torch.nn.Module:
    layout = Layout.load(folder)
    model = build_model(layout.shape, position_embedding="rope", dtype=dtype)
    load_slices(model, read_rank(folder, layout, 0))
    if vocab < 96:
        model.output_layer.true_size = vocab
        mask_padded_vocabulary(model.output_layer)
    return model


@pytest.mark.parametrize("part", [1, 7, 60, 256])
@pytest.mark.parametrize("vocab", [96, 90])
def test_loss_and_gradients_are_those_of_the_logits(
    part: int, vocab: int, layouts: dict[int, Path], rows: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's cross-entropy of Megatron-core's logits, in fp64; parts that divide the 60 tokens and that do not."""
    monkeypatch.setattr(logit_parts, "LEAST_TOKENS", part)
    monkeypatch.setitem(logit_parts.PART_BYTES, "cpu", 0)
    tokens, labels, weights = rows
    reference = loaded(layouts[1], torch.float64, vocab)
    losses = torch.nn.functional.cross_entropy(
        reference(tokens, torch.arange(20).expand(3, -1), None).flatten(0, 1), labels.flatten(), reduction="none"
    )
    expected = torch.dot(losses, weights.flatten().double())
    expected.backward()
    model = loaded(layouts[1], torch.float32, vocab)
    got = weighted_loss(model, tokens, labels, weights)
    (3 * got).backward()
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)
    for (name, one), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (one.grad - 3 * other.grad).norm() < 1e-5 * other.grad.norm(), name


def test_bf16_is_no_further_from_the_truth_than_the_logits_way(
    layouts: dict[int, Path], rows: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_parts, "LEAST_TOKENS", 7)
    monkeypatch.setitem(logit_parts.PART_BYTES, "cpu", 0)
    tokens, labels, weights = rows
    gradients = {}
    for way, dtype in (("truth", torch.float32), ("parts", torch.bfloat16), ("logits", torch.bfloat16)):
        model = loaded(layouts[1], dtype)
        if way == "logits":
            loss = (token_losses(model, tokens, labels) * weights).sum()
        else:
            loss = weighted_loss(model, tokens, labels, weights)
        loss.backward()
        gradients[way] = torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()])
    errors = {way: (gradients[way] - gradients["truth"]).norm() for way in ("parts", "logits")}
    assert 0 < errors["parts"] < 1.05 * errors["logits"]


def test_without_labels_it_is_megatrons(layouts: dict[int, Path], rows: tuple[Tensor, ...]) -> None:
    tokens, labels, weights = rows
    model = loaded(layouts[1], torch.float32).eval()
    losses = torch.nn.functional.cross_entropy(
        full_logits(model, tokens).flatten(0, 1), labels.flatten(), reduction="none"
    )
    got = weighted_loss(model, tokens, labels, weights)
    torch.testing.assert_close(got, torch.dot(losses, weights.flatten()), rtol=1e-6, atol=0)
