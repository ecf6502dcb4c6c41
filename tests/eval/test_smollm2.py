"""A real model through the parts of the evaluation that a random one says nothing about."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from eval.answers.generation import generate
from eval.config import NiahConfig
from eval.tasks.loss import loss_at_length
from eval.tasks.niah.samples import draw_samples
from eval.variants.loading import load_variant
from model_surgery.verification.tokens import PASSAGE

pytestmark = pytest.mark.slow

LENGTH = 384


def test_the_drop_costs_what_it_costs_a_trained_model(
    smollm2: Path, write_drope: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    """A text that no model was trained on; without RoPE and training the loss is more than two nats higher."""
    text = PASSAGE.read_text(encoding="utf-8")
    tokens = np.array(AutoTokenizer.from_pretrained(smollm2)(text).input_ids[: LENGTH + 1])
    folders = {"rope": smollm2, "drope": write_drope(smollm2, tmp_path / "drope")}
    losses = {}
    for variant, folder in folders.items():
        model = load_variant(variant, folder, 1, context=8192)
        losses[variant] = loss_at_length(model, tokens, LENGTH, 1, LENGTH).value
    assert losses["rope"] == pytest.approx(3.5, abs=0.3)
    assert 2 < losses["drope"] - losses["rope"] < 4


def test_it_finds_a_needle(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    samples = draw_samples("niah_single_1", NiahConfig(samples=3, new_tokens=16), (), tokenizer.encode, 512, seed=0)
    model = load_variant("rope", smollm2, 1, context=8192)
    prompts = [list(sample.tokens) for sample in samples]
    given = {"new_tokens": 16, "batch_tokens": 512, "stop": lambda *_: False}
    answers = dict(answer for batch in generate(model, prompts, **given) for answer in batch)
    assert [sample.answers[0] in tokenizer.decode(answers[index]) for index, sample in enumerate(samples)] == [True] * 3
