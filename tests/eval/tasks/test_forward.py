from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import eval.tasks.forward
from eval.tasks.forward import cropped_losses, greedy_tokens, token_losses


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
    monkeypatch.setattr(
        eval.tasks.forward, "LOGIT_ELEMENTS", 7 * 2048
    )  # logits of 7 positions at a time: pieces do not fit
    losses = token_losses(model, rows, batch_tokens)
    assert losses.shape == (5, 40)
    for row, loss in zip(rows, losses, strict=True):
        ids = torch.from_numpy(row)[None]
        with torch.inference_mode():
            assert loss.mean() == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-5)


def test_greedy_tokens_are_the_argmax_of_all_logits(model: LlamaForCausalLM, rows: np.ndarray) -> None:
    with torch.inference_mode():
        expected = model(torch.from_numpy(rows)).logits.argmax(-1)[:, -4:-1].numpy()
    np.testing.assert_array_equal(greedy_tokens(model, rows, 3, 90), expected)


@pytest.mark.parametrize("length", [5, 8, 9, 20, 23])
def test_cropped_losses_have_at_least_half_a_window_before_them(model: LlamaForCausalLM, length: int) -> None:
    """Windows start every 4 tokens, the last ends with the row; of those that hold a token the first counts."""
    rows, window = np.random.default_rng(4).integers(3, 2048, (2, length + 1)), 8
    got = cropped_losses(model, rows, window, 64)
    starts = [*range(0, length - window, 4), length - window] if length > window else [0]
    for position in range(length):
        start = next(start for start in starts if position < start + window)
        assert start == 0 or position - start >= window // 2
        alone = token_losses(model, rows[:, start : position + 2], 64)[:, -1]
        np.testing.assert_allclose(got[:, position], alone, atol=1e-5)
