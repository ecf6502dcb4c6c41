"""The paired bootstrap against what is known of a mean's error, and by its error rate."""

import numpy as np
import pytest

from eval.statistics import paired_bootstrap, stratified_bootstrap


def test_the_error_is_that_of_the_mean_difference() -> None:
    draw = np.random.default_rng(0)
    shared = draw.normal(0, 5, 400)  # what both have in common cancels
    a, b = shared + draw.normal(1, 0.3, 400), shared + draw.normal(0.5, 0.4, 400)
    paired = paired_bootstrap(a, b)
    error = (a - b).std(ddof=1) / 20
    assert paired.difference == pytest.approx((a - b).mean())
    assert paired.stderr == pytest.approx(error, rel=0.05)
    assert paired.low == pytest.approx(paired.difference - 1.96 * error, abs=0.2 * error)
    assert paired.high == pytest.approx(paired.difference + 1.96 * error, abs=0.2 * error)
    assert paired == paired_bootstrap(a, b) != paired_bootstrap(a, b, seed=1)


def test_the_interval_misses_the_truth_in_about_one_case_of_twenty() -> None:
    draw = np.random.default_rng(1)
    missed = 0
    for seed in range(300):
        a, b = (draw.random(100) < 0.5, draw.random(100) < 0.5)
        paired = paired_bootstrap(a, b, draws=1000, seed=seed)
        missed += not paired.low <= 0 <= paired.high
    assert 4 <= missed <= 28  # 15 expected; four standard deviations


def test_equal_values_differ_by_nothing() -> None:
    paired = paired_bootstrap([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (paired.difference, paired.stderr, paired.low, paired.high, paired.samples) == (0, 0, 0, 0, 3)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([], [])])
def test_what_cannot_be_compared(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="equally many, at least two"):
        paired_bootstrap(a, b)


def test_parts_weigh_alike_whatever_their_sizes() -> None:
    """The error of a mean of means: the root of the sum of squared errors, over the number of parts."""
    draw = np.random.default_rng(2)
    parts = [
        (draw.normal(mean, spread, n), np.zeros(n))
        for mean, spread, n in ((1.0, 0.5, 400), (3.0, 2.0, 50), (0.0, 1.0, 90))
    ]
    paired = stratified_bootstrap(parts)
    errors = [a.std(ddof=1) / len(a) ** 0.5 for a, _ in parts]
    assert paired.difference == pytest.approx(np.mean([a.mean() for a, _ in parts])) and paired.samples == 540
    assert paired.stderr == pytest.approx(np.linalg.norm(errors) / 3, rel=0.05)
    assert paired.low < paired.difference < paired.high
    assert stratified_bootstrap(parts[:1]) == paired_bootstrap(*parts[0])


def test_a_part_with_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="1 and 1 values"):
        stratified_bootstrap([([1.0, 2.0], [0.0, 0.0]), ([1.0], [0.0])])
