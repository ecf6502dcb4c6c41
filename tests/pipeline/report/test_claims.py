"""What may be said: worked by hand, and against drawn samples."""

import numpy as np
import pytest

from eval.results import Score
from pipeline.report.claims import all_claims, claims, compare, judgement, our_variant, sentence, standard_error
from pipeline.report.claims import summary as summary_of


def summary(results) -> list[str]:
    return summary_of(all_claims(results), results.chance)


def score(
    task: str, value: float, stderr: float | None, variant: str = "drope", samples: int = 200, factor: int = 4
) -> Score:
    return Score(
        variant=variant,
        task=task,
        metric="exact_match",
        context_factor=factor,
        length=64 * factor,
        value=value,
        stderr=stderr,
        samples=samples,
        seconds=0.0,
    )


def test_recall_beyond_two_standard_errors_is_better() -> None:
    claim = compare(score("recall", 0.81, 0.03), score("recall", 0.40, 0.04, "yarn"))
    assert claim.difference == pytest.approx(0.41)
    assert claim.stderr == pytest.approx(0.05)  # 3, 4, 5
    assert claim.verdict == "better"
    assert sentence([claim], chance=0.03125) == (
        "At 4x its context (256 tokens) DroPE recalls 0.81 of the facts, the best RoPE scaling (YaRN) 0.40: "
        "better by 0.41 ± 0.05; chance is 0.03."
    )


@pytest.mark.parametrize(
    ("ours", "rival", "verdict"),
    [(0.59, 0.50, "within the noise"), (0.41, 0.50, "within the noise"), (0.61, 0.50, "better"), (0.39, 0.50, "worse")],
)
def test_two_standard_errors_are_the_border(ours: float, rival: float, verdict: str) -> None:
    claim = compare(score("recall", ours, 0.03), score("recall", rival, 0.04, "yarn"))
    assert claim.verdict == verdict
    assert ("better by" in judgement(claim)) == (verdict == "better")
    assert ("no better" in judgement(claim) and "within the noise" in judgement(claim)) == (
        verdict == "within the noise"
    )


def test_lower_loss_is_better() -> None:
    better = compare(score("loss", 2.2, 0.03), score("loss", 2.5, 0.04, "pi"))
    worse = compare(score("loss", 2.5, 0.03), score("loss", 2.2, 0.04, "rope"))
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert better.difference == pytest.approx(0.3) and worse.difference == pytest.approx(-0.3)
    assert "plain RoPE, the best of the RoPE variants, 2.20: worse by 0.30 ± 0.05" in sentence([worse])


def test_a_single_row_gives_no_claim() -> None:
    claim = compare(score("loss", 2.0, None, samples=1), score("loss", 9.0, 0.01, "rope"))
    assert claim.verdict == "no standard error"
    assert "too little for a claim" in judgement(claim)


def test_a_share_of_all_or_none_is_not_certain() -> None:
    assert standard_error(score("recall", 1.0, 0.0, samples=6)) == pytest.approx((7 / 8 * 1 / 8 / 6) ** 0.5)
    assert compare(score("recall", 1.0, 0.0, samples=6), score("recall", 5 / 6, 0.167, "rope", 6)).verdict == (
        "within the noise"
    )
    assert standard_error(score("loss", 0.0, 0.0)) == 0.0


def test_small_errors_are_shown_with_enough_decimals() -> None:
    claim = compare(score("loss", 2.2031, 0.0003), score("loss", 2.2091, 0.0004, "rope"))
    assert judgement(claim) == "better by 0.0060 ± 0.0005"


def test_values_of_the_same_samples_are_compared_in_pairs() -> None:
    """What both find hard cancels: a difference far below the scores' own errors is told, and its sign is kept."""
    draw = np.random.default_rng(0)
    hard = draw.normal(2.5, 1.0, 100)
    own, theirs = hard + draw.normal(0, 0.01, 100), hard + 0.05 + draw.normal(0, 0.01, 100)
    scores = [score("loss", float(values.mean()), 0.1, name) for values, name in ((own, "drope"), (theirs, "yarn"))]
    assert compare(*scores).verdict == "within the noise"
    claim = compare(*scores, [(own.tolist(), theirs.tolist())])
    assert claim.verdict == "better" and claim.difference == pytest.approx(0.05, abs=0.005)
    assert claim.stderr == pytest.approx(0.0014, rel=0.2) and claim.interval[0] < claim.difference < claim.interval[1]
    turned = compare(*reversed(scores), [(theirs.tolist(), own.tolist())])
    assert turned.verdict == "worse" and turned.interval == pytest.approx(
        (-claim.interval[1], -claim.interval[0]), abs=2e-4
    )


def test_where_all_differ_alike_nothing_is_certain() -> None:
    """Six of six against none of six: no draw differs from another."""
    right, wrong = score("recall", 1.0, 0.0, samples=6), score("recall", 0.0, 0.0, "yarn", 6)
    claim = compare(right, wrong, [([1.0] * 6, [0.0] * 6)])
    assert claim.interval is None and claim.stderr == compare(right, wrong).stderr > 0


@pytest.mark.parametrize("share", [0.03, 0.4, 0.95])
def test_equal_models_are_seldom_called_different(share: float) -> None:
    """Two standard errors of a normal difference are passed by chance in 4.6% of cases."""
    n, draws = 200, 2000
    rights = np.random.default_rng(0).binomial(n, share, size=(draws, 2)) / n

    def drawn(value: float) -> Score:
        return score("recall", value, float(np.sqrt(value * (1 - value) / (n - 1))), samples=n)

    wrong = sum(compare(drawn(a), drawn(b)).verdict in ("better", "worse") for a, b in rights)
    assert wrong / draws < 0.065


def test_the_best_rival_is_chosen_at_every_length(run) -> None:
    results = run.results(run.recipe().evaluation)
    assert [c.rival.variant for c in claims(results, "recall")] == ["rope", "yarn", "yarn", "yarn"]
    assert [c.verdict for c in claims(results, "recall")] == [
        "within the noise",
        "better",
        "better",
        "within the noise",
    ]
    assert [c.verdict for c in claims(results, "loss")] == ["worse", "better", "better", "better"]


def test_summary_says_what_is_worse_too(run) -> None:
    first, second, third, fourth = summary(run.results(run.recipe().evaluation))
    assert first.startswith(
        "At its own context (64 tokens) DroPE recalls 0.95 of the facts, the RoPE source 0.97: no better"
    )
    assert "the RoPE source 2.10: worse by 0.06 ± 0.02" in second
    assert third.startswith(
        "At 4x its context (256 tokens) DroPE recalls 0.81 of the facts, the best RoPE scaling (YaRN)"
    )
    assert "a loss of 2.24 nats per token, the best RoPE scaling (YaRN) 2.51: better by" in fourth


def test_the_control_is_named_in_context(full) -> None:
    first = summary(full.results(full.recipe().evaluation))[0]
    assert "the control (RoPE kept, trained on the same rows) 0.98: no better" in first


def test_the_longest_length_is_the_headline_without_4x(run) -> None:
    run.lengths = (1, 2)
    assert summary(run.results(run.recipe().evaluation))[-1].startswith("At 2x its context (128 tokens)")
    run.lengths = (1,)
    recall, loss = summary(run.results(run.recipe().evaluation))
    assert recall.startswith("At its own context (64 tokens) DroPE recalls")
    assert loss.startswith("At its own context (64 tokens) DroPE has a loss of")


def test_the_form_of_drope_is_chosen_by_configuration(full) -> None:
    results = full.results(full.recipe().evaluation)
    assert our_variant(results) == "drope_scaled"
    plain = results.config.model_copy(update={"softmax_scale_c": 0.0})
    assert our_variant(results.model_copy(update={"config": plain})) == "drope"


def test_without_drope_nothing_is_claimed(run) -> None:
    run.variants = ("rope", "yarn")
    results = run.results(run.recipe().evaluation)
    assert claims(results, "recall") == [] and summary(results) == []
