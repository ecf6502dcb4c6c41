"""LongRoPE2's rescale factors (Shang et al. 2025, arXiv:2502.20082): one per pair of dimensions, found by evolution.

Pair i turns by theta^(-2i/d) / factor_i per token. Pairs from a critical one on have not turned a whole round within
the training length, so their factors must reach s; those before are rescaled as by a changed base (NTK-aware), which
leaves the fastest as they are. Which pair is critical, and how far beyond s the later factors go, the search decides.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.config import LongRopeConfig
from eval.errors import EvaluationError

_SPREAD = 0.15
"""Standard deviation of a mutation of a factor's logarithm."""
_MOST = 2.0
"""No factor above so many times s."""
_PARENTS = 0.25
"""Share of a generation that the next is bred from."""


@dataclass(frozen=True)
class Candidate:
    """`tail`: factors of the pairs from `critical` on, not falling."""

    critical: int
    tail: tuple[float, ...]

    @property
    def factors(self) -> tuple[float, ...]:
        """Of all pairs: up to the critical one a base that gives it its factor, tail_0^(i / critical)."""
        head = (self.tail[0] ** (pair / self.critical) for pair in range(self.critical))
        return (*head, *self.tail)


@dataclass(frozen=True)
class Rescaling:
    """The best candidate, and the loss by which it was judged."""

    factors: tuple[float, ...]
    critical: int
    loss: float


def critical_pair(theta: float, head_dim: int, context: int) -> int:
    """The first pair that does not turn once in `context` tokens: ceil(d/2 log_theta(C / 2 pi)), section 3.1."""
    pair = math.ceil(head_dim / 2 * math.log(context / (2 * math.pi)) / math.log(theta))
    return min(max(pair, 0), head_dim // 2 - 1)


def first_candidates(theta: float, head_dim: int, context: int, factor: float) -> list[Candidate]:
    """Where the search starts: the theory's critical pair, NTK (the last pair is critical), and PI (the first is)."""
    pairs = head_dim // 2
    starts = dict.fromkeys((critical_pair(theta, head_dim, context), pairs - 1, 0))
    return [Candidate(start, (float(factor),) * (pairs - start)) for start in starts]


def mutated(parent: Candidate, factor: float, draw: np.random.Generator) -> Candidate:
    """A child: the critical pair moved by at most two, the factors from there on changed, rising, from s to 2 s."""
    factors = np.array(parent.factors)
    critical = int(np.clip(parent.critical + draw.integers(-2, 3), 0, len(factors) - 1))
    tail = np.maximum(factors[critical:], factor) * np.exp(draw.normal(0.0, _SPREAD, len(factors) - critical))
    tail = np.maximum.accumulate(np.clip(tail, factor, _MOST * factor))
    return Candidate(critical, tuple(tail.tolist()))


def search(
    loss: Callable[[Sequence[float]], float],
    first: Sequence[Candidate],
    factor: float,
    *,
    population: int,
    generations: int,
    seed: int,
    on_judged: Callable[[float], None] = lambda best: None,
) -> Rescaling:
    """The factors of the lowest `loss`; never worse than all of `first`. The same for the same arguments.

    on_judged: called after every judged candidate with the lowest loss so far.
    """
    draw, judged = np.random.default_rng(seed), {}

    def judge(candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            if candidate not in judged:
                judged[candidate] = loss(candidate.factors)
            on_judged(min(judged.values()))

    judge([*first])
    parents = [*first]
    for _ in range(generations):
        judge([mutated(parents[draw.integers(len(parents))], factor, draw) for _ in range(population)])
        parents = sorted(judged, key=judged.__getitem__)[: max(2, round(_PARENTS * population))]
    best = min(judged, key=judged.__getitem__)
    return Rescaling(best.factors, best.critical, judged[best])


def read_factors(config: LongRopeConfig, context_factors: Sequence[int], pairs: int) -> dict[int, tuple[float, ...]]:
    """The given factors by context factor; none where they are to be searched.

    Raises: EvaluationError where the file is missing, of another format, or lacks one of `context_factors` above 1.
    """
    if config.factors is None:
        return {}
    path, form = config.factors, 'needs {"4": [...]}, by context factor a list of numbers of at least 1'
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"longrope2.factors: {path} does not exist; give a JSON file or null") from None
    except (OSError, ValueError) as error:
        raise EvaluationError(f"longrope2.factors: {path}: not JSON: {error}; it {form}") from None
    given = {}
    for s in (s for s in context_factors if s > 1):
        values = listed.get(str(s)) if isinstance(listed, dict) else None
        if not isinstance(values, list) or not all(isinstance(one, int | float) and 1 <= one < 1e6 for one in values):
            raise EvaluationError(f"longrope2.factors: {path}: nothing fit for {s}x; it {form}")
        if len(values) != pairs:
            raise EvaluationError(f"longrope2.factors: {path}: {s}x has {len(values)} factors; give {pairs}")
        given[s] = tuple(float(one) for one in values)
    return given
