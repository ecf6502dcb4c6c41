"""The softmax scale: the search against a grid, the fit against scipy's, the scaled model against scaled weights."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from eval.config import EvaluationConfig
from eval.errors import EvaluationError
from eval.held_out import open_prefixes, read_tokens
from eval.models import Models
from eval.tasks.forward import token_losses
from eval.tasks.recall_samples import recall_samples
from eval.tuning.scale_fit import (
    EVALUATIONS,
    GRID,
    at_an_end,
    bootstrap_betas,
    fitted_c,
    knots,
    minimised,
    residual_error,
)
from eval.tuning.softmax_scale import QueryScale, load_model, prepare_tuning, tune
from eval.variants.loading import load_variant, scale_queries
from model_surgery.rotation import IDENTITY_ROTATION
from model_surgery.transformers_registration import register_drope

C = 512
RECALL = {
    "fact": "{key} likes {value}. ",
    "question": "{key} likes",
    "keys": ("Tom", "Lily", "Ben"),
    "values": ("cats", "dogs"),
    "needles": 2,
    "samples": 3,
}


def config_of(**changes: object) -> EvaluationConfig:
    settings = {"context_factors": (1, 2), "loss": {"tokens": 2048}, "batch_tokens": 4096}
    return EvaluationConfig(**settings | changes)


@pytest.mark.parametrize("best", [0.62, 1.0, 1.02, 1.31, 2.4])
def test_the_search_finds_what_a_fine_grid_finds_in_few_evaluations(best: float) -> None:
    asked: list[float] = []

    def loss(beta: float) -> float:
        asked.append(beta)
        return (beta / best) ** 2 + 3 * (best / beta)  # steep below, flat above, as losses are

    grid = np.linspace(GRID[0], GRID[-1], 25_001)
    expected = grid[np.argmin([loss(beta) for beta in grid])]
    asked.clear()
    assert minimised(loss) == pytest.approx(expected, abs=0.01)
    assert len(asked) == len(set(asked)) <= EVALUATIONS


def test_the_search_does_not_fall_into_the_nearest_of_two_valleys() -> None:
    assert minimised(lambda beta: min((beta - 0.8) ** 2, (beta - 2.1) ** 2 - 0.1)) == pytest.approx(2.1, abs=0.01)


def test_a_minimum_beyond_what_is_searched_is_told() -> None:
    assert at_an_end(minimised(lambda beta: beta)) and at_an_end(minimised(lambda beta: -beta))
    assert not at_an_end(1.4)


@pytest.mark.parametrize("betas", [[1.1, 1.2, 1.33], [1.4, 1.52, 1.78], [0.9, 1.0, 0.8]])
def test_c_and_its_error_are_those_of_scipys_curve_fit(betas: list[float]) -> None:
    factors = [2, 4, 8]
    c, covariance = curve_fit(lambda s, c: 1 + c * np.log(s), factors, betas)
    assert float(fitted_c(factors, np.array(betas))) == pytest.approx(c[0])
    assert residual_error(factors, betas) == pytest.approx(np.sqrt(covariance[0, 0]))


def test_one_length_gives_c_and_no_error_by_residuals() -> None:
    assert float(fitted_c([4], np.array([1.5]))) == pytest.approx(0.5 / np.log(4))
    assert residual_error([4], [1.5]) is None


def test_the_bootstrap_has_the_spread_of_a_mean_where_rows_are_parabolas() -> None:
    """Each row is least at its own ln beta; the mean loss is then least at their mean, whose error is known."""
    minima = np.random.default_rng(0).normal(0.3, 0.1, size=40)
    at = knots(np.exp(minima.mean()))
    losses = (np.log(at)[:, None] - minima[None, :]) ** 2
    drawn = np.log(bootstrap_betas(at, losses, np.full(40, 3), 4000, [1]))
    assert drawn.mean() == pytest.approx(minima.mean(), abs=0.002)
    assert drawn.std() == pytest.approx(minima.std() / np.sqrt(40), rel=0.05)
    same = np.repeat(losses[:, :1], 40, axis=1)
    assert np.log(bootstrap_betas(at, same, np.full(40, 3), 50, [1])) == pytest.approx(np.full(50, minima[0]))
    assert bootstrap_betas(at, losses[:, :1], np.full(1, 3), 50, [1]) is None


def test_rows_of_more_counted_tokens_weigh_more_in_a_draw() -> None:
    at = [0.5, 0.7, 1.0, 1.4, 2.0, 3.0]
    losses = (np.log(at)[:, None] - np.array([0.0, 0.5])[None, :]) ** 2
    drawn = np.log(bootstrap_betas(at, losses, np.array([1, 3]), 2000, [0]))
    assert set(np.round(drawn, 6)) == {0.0, 0.375, 0.5}  # one row twice, both, the other twice


def kinds(write_model: Callable[..., Path], tmp_path: Path, kind: str) -> Path:
    """A tiny model without positions by its norms: none, full, per_head."""
    register_drope()
    if kind == "per_head":
        rope = {"rope_theta": 1e4, **IDENTITY_ROTATION}
        return write_model(tmp_path / kind, "qwen3", head_dim=8, rope_parameters=rope)
    if kind == "full":
        return write_model(tmp_path / kind, "llama_drope", attention_type="qk_norm_nope")
    return write_model(tmp_path / kind, "smollm3", no_rope_layers=[0, 0], attention_bias=True, pad_token_id=0)


@pytest.mark.parametrize("kind", ["none", "full", "per_head"])
def test_a_scaled_model_is_one_with_scaled_weights_however_often_it_was_scaled(
    kind: str, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = kinds(write_model, tmp_path, kind)
    tokens = torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(2))

    def logits(model: object) -> torch.Tensor:
        with torch.inference_mode():
            return model(tokens).logits

    model, other = (load_variant("drope", folder, 1, context=32) for _ in range(2))
    first = logits(model)
    scaled = QueryScale(model)
    for beta in (0.7, 3.0, 1.37):
        again = logits(scaled(beta))
    scale_queries(other, 1.37)
    torch.testing.assert_close(again, logits(other), rtol=0, atol=1e-5)
    assert (again - first).abs().max() > 0.01
    assert torch.equal(logits(scaled(1.0)), first)


def test_tuned_on_text_that_is_not_scored_it_is_what_a_grid_finds(models: Models) -> None:
    config = config_of()
    tuning = prepare_tuning(config, models, tokens=4096, samples=1)
    all_tokens = read_tokens(open_prefixes(models.validation), 10**6)
    scored = len(tuning.inputs.tokens)
    assert scored >= config.loss.tokens
    assert np.array_equal(tuning.tokens, all_tokens[scored : scored + 4097])
    model = load_model(tuning, models, 2)
    tuned = tune(tuning, models, model)
    (one,) = tuned.lengths
    rows = np.stack([tuning.tokens[start : start + 1025] for start in range(0, 4096, 1024)])
    grid = np.linspace(0.5, 3.0, 26)
    weights = {}
    for beta in (*grid, one.beta):
        other = load_variant("drope", models.drope, 2, context=C)
        scale_queries(other, float(beta))
        weights[float(beta)] = token_losses(other, rows, 4096).mean()
    best = min(grid, key=lambda beta: weights[float(beta)])
    assert abs(one.beta - best) <= 0.1 and one.loss_tuned <= weights[float(best)] + 1e-6
    assert one.loss_tuned == pytest.approx(weights[one.beta], abs=1e-5)
    assert one.loss_plain == pytest.approx(weights[1.0], abs=1e-5)
    assert tuned.c == pytest.approx((one.beta - 1) / np.log(2)) and tuned.beta(2) == pytest.approx(one.beta)
    assert (tuned.judged_by, one.rows, one.length, one.factor) == ("text", 4, 2 * C, 2)
    assert tuned.c_error == pytest.approx(one.beta_error / np.log(2)) and tuned.c_residual_error is None
    table = list(csv.DictReader(io.StringIO(tuned.table())))
    assert len(table) == len(one.points) and [float(row["beta"]) for row in table if row["best"] == "1"] == [one.beta]


def test_a_single_row_has_no_error_and_every_length_above_1x_is_tuned(models: Models) -> None:
    tuning = prepare_tuning(config_of(context_factors=(1, 2, 4)), models, tokens=1, samples=1)
    tuned = tune(tuning, models, load_model(tuning, models, 4))
    assert [(one.factor, one.rows, one.beta_error, one.gain_error) for one in tuned.lengths] == [
        (2, 1, None, None),
        (4, 1, None, None),
    ]
    assert tuned.c_error is None and tuned.c_residual_error is not None
    for one in tuned.lengths:
        assert one.fitted_beta == pytest.approx(1 + tuned.c * np.log(one.factor))
        assert one.gain == pytest.approx(one.loss_plain - one.loss_fitted)
        assert one.loss_tuned == min(point.loss for point in one.points)


def test_needles_of_another_seed_judge_where_the_recipe_has_recall(models: Models) -> None:
    config = config_of(recall=RECALL)
    tuning = prepare_tuning(config, models, tokens=4096, samples=5)
    assert len(tuning.tokens) == len(tuning.check) == 0
    judge, inputs = tuning.judge(2 * C), tuning.inputs
    scored = recall_samples(config.recall, inputs.encode, inputs.tokens, 2 * C, config.seed, inputs.prefix)
    assert judge.rows.shape == (5, 2 * C)
    assert not any(np.array_equal(row, other) for row in judge.rows for other in scored.tokens)
    model = load_model(tuning, models, 2)
    answers = [row[1:][asked] for row, asked in zip(judge.rows, judge.asked, strict=True)]
    words = {tuple(inputs.encode(f"Tom likes {value}"))[-1] for value in RECALL["values"]}
    assert {int(answer[-1]) for answer in answers} <= words
    losses = token_losses(model, judge.rows, 4096)
    assert judge.loss(model) == pytest.approx(losses[judge.asked].mean())
    assert tune(tuning, models, model).judged_by == "needles"


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"context_factors": (1,)}, {}, r"context_factors = \[1\]: a softmax scale is for lengths above 1x; add 2, 4"),
        ({"loss": {"tokens": 10**6}}, {}, "of which .* are scored by the evaluation; .* on others, at least 1025; "),
        ({"recall": RECALL, "loss": {"tokens": 30_000}}, {"head_length": 20_000}, "on others, at least 20001; prepare"),
    ],
)
def test_what_cannot_be_tuned(models: Models, changed: dict, options: dict, message: str) -> None:
    with pytest.raises(EvaluationError, match=message) as caught:
        prepare_tuning(config_of(**changed), models, tokens=4096, samples=1, **options)
    assert "\n" not in str(caught.value)


def test_a_model_with_rope_has_no_such_scale(models: Models) -> None:
    rotating = Models(models.source, models.source, None, models.tokenizer, models.validation)
    with pytest.raises(EvaluationError, match="still have RoPE"):
        prepare_tuning(config_of(), rotating, tokens=4096, samples=1)


def test_a_scale_of_zero_or_less_is_refused(models: Models) -> None:
    tuning = prepare_tuning(config_of(), models, tokens=1, samples=1)
    tuned = tune(tuning, models, load_model(tuning, models, 2)).model_copy(update={"c": -0.5})
    with pytest.raises(EvaluationError, match=r"factor = 8: 1 \+ c ln s = -0.0397 with c = -0.5; take a smaller one"):
        tuned.beta(8)
