"""The mean of a score, and differences between two variants on the same samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
_BLOCK = 500
"""Draws that are held at once."""


def mean_and_error(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Mean of [n] values and its standard error, sample deviation / sqrt(n); None where n = 1."""
    values = np.asarray(values, dtype=float)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error


@dataclass(frozen=True)
class Paired:
    """Mean of a - b over n samples: standard error and central 95% interval of the bootstrap."""

    difference: float
    stderr: float
    low: float
    high: float
    samples: int


def paired_bootstrap(a: Sequence[float], b: Sequence[float], *, draws: int = DRAWS, seed: int = 0) -> Paired:
    """Draws the samples with replacement, both variants' values together, and takes the mean difference of each draw.

    Efron and Tibshirani (1993), "An introduction to the bootstrap", percentile interval. The same for the same
    arguments.

    Raises: ValueError if there are fewer than two samples, or not equally many.
    """
    return stratified_bootstrap([(a, b)], draws=draws, seed=seed)


def stratified_bootstrap(
    parts: Sequence[tuple[Sequence[float], Sequence[float]]], *, draws: int = DRAWS, seed: int = 0
) -> Paired:
    """As `paired_bootstrap`, for the mean over `parts` (tasks) of their mean differences, whatever their sizes.

    Samples are drawn within their part, so that every draw weighs the parts alike.

    Raises: ValueError as `paired_bootstrap`.
    """
    draw, drawn, means = np.random.default_rng(seed), np.zeros(draws), []
    for a, b in parts:
        if len(a) != len(b) or len(a) < 2:
            raise ValueError(f"{len(a)} and {len(b)} values: a paired comparison takes equally many, at least two")
        differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
        means.append(differences.mean())
        drawn += _drawn_means(differences, draws, draw) / len(parts)
    low, high = np.quantile(drawn, (0.025, 0.975))
    samples = sum(len(a) for a, _ in parts)
    return Paired(float(np.mean(means)), float(drawn.std(ddof=1)), float(low), float(high), samples)


def _drawn_means(differences: np.ndarray, draws: int, draw: np.random.Generator) -> np.ndarray:
    """Means of `draws` samples with replacement, a block of them at a time."""
    means = []
    for start in range(0, draws, _BLOCK):
        index = draw.integers(len(differences), size=(min(_BLOCK, draws - start), len(differences)))
        means.append(differences[index].mean(axis=1))
    return np.concatenate(means)
