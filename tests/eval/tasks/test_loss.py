import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from eval.errors import EvaluationError
from eval.statistics import mean_and_error
from eval.tasks.loss import bucket_edges, cut_rows, loss_at_length, rows_at
from eval.variants.loading import load_variant

C = 512


def test_rows_overlap_by_the_token_that_is_not_predicted() -> None:
    assert cut_rows(np.arange(100), 4, 3).tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 12]]


@pytest.mark.parametrize(
    ("available", "asked", "length", "rows"),
    [(101, 1000, 50, 2), (100, 1000, 50, 1), (1000, 120, 50, 2), (60, 1, 50, 1)],
)
def test_rows_at(available: int, asked: int, length: int, rows: int) -> None:
    assert rows_at(available, asked, length) == rows
    assert cut_rows(np.arange(available), length, rows).shape == (rows, length + 1)


@pytest.mark.parametrize("length", [5, 64, 100, 4096])
def test_buckets_cover_every_position_once(length: int) -> None:
    edges = np.array(bucket_edges(length))
    widths = np.diff(edges)
    assert edges[0] == 0 and edges[-1] == length and len(widths) == min(64, length)
    assert widths.min() >= 1 and widths.max() - widths.min() <= 1


def test_mean_and_error_by_hand() -> None:
    assert mean_and_error(np.array([1.0, 3.0])) == (2.0, pytest.approx(1.0))
    assert mean_and_error(np.array([5.0])) == (5.0, None)


def test_value_is_transformers_loss_and_the_curve_its_parts(source: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(3, 2048, 301)
    by_length = loss_at_length(model, tokens, 100, 3, 128)
    rows = torch.from_numpy(cut_rows(tokens, 100, 3))
    with torch.inference_mode():
        losses = [model(row[None], labels=row[None]).loss.item() for row in rows]
    assert by_length.value == pytest.approx(np.mean(losses), rel=1e-5)
    assert by_length.stderr == pytest.approx(np.std(losses, ddof=1) / np.sqrt(3), rel=1e-3)
    assert np.average(by_length.by_position, weights=np.diff(by_length.edges)) == pytest.approx(by_length.value)


def test_a_loss_that_is_no_number_is_refused(source: Path) -> None:
    model = load_variant("rope", source, 1, context=C)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan  # tied: of every logit of that token, and so of every loss
    with pytest.raises(
        EvaluationError,
        match=r"(656k|small-llama\S*): the loss of 200 tokens at length 100 is no number, first that of token 0 of",
    ):
        loss_at_length(model, np.arange(20, 221), 100, 2, 128)


def test_real_model_gets_worse_past_its_context_and_scaling_helps(
    extra_data: Callable[[str], Path], write_drope: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    """Loss on TinyStories' validation text, bounds wide around what was measured with this code on all of it."""
    source, text = extra_data("models/tinystories-656k"), extra_data("text/tinystories-validation.jsonl")
    drope, tokenizer = write_drope(source, tmp_path / "drope"), AutoTokenizer.from_pretrained(source)
    stories = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    tokens = np.concatenate([[*tokenizer.encode(story), tokenizer.eos_token_id] for story in stories])[: 8 * 2048 + 1]

    def loss(variant: str, factor: int) -> float:
        model = load_variant(variant, drope if variant == "drope" else source, factor, context=C)
        return loss_at_length(model, tokens, factor * C, rows_at(len(tokens), len(tokens), factor * C), 2048).value

    expected = {
        ("rope", 1): 3.43,
        ("rope", 2): 3.97,
        ("rope", 4): 4.86,
        ("pi", 2): 3.83,
        ("ntk", 2): 3.73,
        ("yarn", 2): 3.54,
        ("drope", 1): 5.44,
    }
    losses = {key: loss(*key) for key in expected}
    assert losses == {key: pytest.approx(value, abs=0.2) for key, value in expected.items()}
    assert losses["yarn", 2] < losses["ntk", 2] < losses["pi", 2] < losses["rope", 2]
