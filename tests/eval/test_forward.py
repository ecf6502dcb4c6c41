from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import eval.forward
from eval.forward import greedy_tokens, token_losses


@pytest.fixture(scope="module")
def model(source: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 2048, (5, 41))


@pytest.mark.parametrize("batch_tokens", [1, 90, 10_000])
def test_losses_equal_transformers_own(
    model: LlamaForCausalLM, rows: np.ndarray, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval.forward, "_LOGIT_ELEMENTS", 7 * 2048)  # logits of 7 positions at a time: pieces do not fit
    losses = token_losses(model, rows, batch_tokens)
    assert losses.shape == (5, 40)
    for row, found in zip(rows, losses, strict=True):
        ids = torch.from_numpy(row)[None]
        with torch.inference_mode():
            assert found.mean() == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-5)


def test_greedy_tokens_are_the_argmax_of_all_logits(model: LlamaForCausalLM, rows: np.ndarray) -> None:
    with torch.inference_mode():
        expected = model(torch.from_numpy(rows)).logits.argmax(-1)[:, -4:-1].numpy()
    np.testing.assert_array_equal(greedy_tokens(model, rows, 3, 90), expected)
