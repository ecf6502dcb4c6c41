"""Differences between two variants on the same samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
_BLOCK = 500
"""Draws that are held at once."""


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
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"{len(a)} and {len(b)} values: a paired comparison takes equally many, at least two")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    draw, means = np.random.default_rng(seed), []
    for start in range(0, draws, _BLOCK):
        index = draw.integers(len(differences), size=(min(_BLOCK, draws - start), len(differences)))
        means.append(differences[index].mean(axis=1))
    drawn = np.concatenate(means)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Paired(float(differences.mean()), float(drawn.std(ddof=1)), float(low), float(high), len(differences))
