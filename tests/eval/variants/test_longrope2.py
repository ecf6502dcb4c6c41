"""LongRoPE2's factors: the theory's critical pair, the search, given files, and a search on the real checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.config import EvaluationConfig, LongRopeConfig
from eval.errors import EvaluationError
from eval.inputs import read_inputs
from eval.models import Models
from eval.tasks.forward import token_losses
from eval.tasks.loss import cut_rows
from eval.tuning.rescale_factors import Rescale, load_or_search
from eval.variants.loading import load_variant
from eval.variants.longrope2 import Candidate, critical_pair, first_candidates, mutated, read_factors, search
from eval.variants.rope_scaling import ntk_theta

C, THETA, PAIRS = 512, 10000.0, 8


@pytest.mark.parametrize(
    ("theta", "width", "context"), [(1e4, 16, 512), (1e4, 128, 4096), (5e5, 128, 8192), (1e2, 16, 64)]
)
def test_the_critical_pair_is_the_first_that_does_not_turn_once(theta: float, width: int, context: int) -> None:
    turns = [context * theta ** (-2 * pair / width) / (2 * np.pi) for pair in range(width // 2)]
    assert critical_pair(theta, width, context) == next(pair for pair, count in enumerate(turns) if count < 1)


def test_the_first_candidates_are_theory_ntk_and_pi() -> None:
    theory, ntk, pi = (candidate.factors for candidate in first_candidates(THETA, 2 * PAIRS, C, 4))
    assert pi == (4.0,) * PAIRS
    by_base = [(ntk_theta(THETA, 16, 4) / THETA) ** (2 * pair / 16) for pair in range(PAIRS)]
    assert ntk == pytest.approx(by_base)
    critical = critical_pair(THETA, 16, C)
    assert theory[critical:] == (4.0,) * (PAIRS - critical) and theory[0] == 1.0 < theory[1] < theory[critical - 1] < 4


def test_children_rise_from_s_to_twice_s() -> None:
    draw = np.random.default_rng(0)
    parent = first_candidates(THETA, 2 * PAIRS, C, 4)[0]
    children = [mutated(parent, 4, draw) for _ in range(200)]
    assert len({child.critical for child in children}) == 5
    for child in children:
        assert len(child.factors) == PAIRS
        assert all(left <= right for left, right in zip(child.factors, child.factors[1:], strict=False))
        assert all(4 <= factor <= 8 for factor in child.tail)


def test_the_search_comes_near_what_is_best_and_is_repeatable() -> None:
    best = np.log(Candidate(3, (4.0, 4.5, 5.0, 6.0, 7.0)).factors)

    def loss(factors: tuple[float, ...]) -> float:
        return float(np.square(np.log(factors) - best).sum())

    first = first_candidates(THETA, 2 * PAIRS, C, 4)
    sizes = {"population": 24, "generations": 20, "seed": 3}
    lowest: list[float] = []
    result = search(loss, first, 4, **sizes, on_judged=lowest.append)
    assert result == search(loss, first, 4, **sizes)
    assert result.loss < 0.1 * min(loss(one.factors) for one in first)
    assert len(lowest) == len(first) + 24 * 20 and lowest == sorted(lowest, reverse=True)
    assert lowest[-1] == result.loss
    unguided = search(lambda factors: 0.0, first, 4, **sizes)
    assert unguided.factors == first[0].factors  # nothing is better than where it starts


@pytest.fixture
def config() -> EvaluationConfig:
    settings = {"tokens": 1024, "population": 4, "generations": 2}
    return EvaluationConfig(
        variants=("rope", "longrope2"),
        context_factors=(1, 2),
        loss={"tokens": 4096},
        longrope2=settings,
        batch_tokens=2048,
    )


def test_searched_on_text_that_is_not_scored_and_kept(config: EvaluationConfig, models: Models, tmp_path: Path) -> None:
    inputs = read_inputs(config, models)
    assert len(inputs.unscored) == 1025
    factors = load_or_search(config, models, inputs, 2, tmp_path)
    kept = Rescale.model_validate_json((tmp_path / "longrope2-2x.json").read_bytes())
    assert kept.factors == factors and kept.judged_by == "text"
    model = load_variant("longrope2", models.source, 2, context=C, factors=factors)
    assert token_losses(model, cut_rows(inputs.unscored, 1024, 1), 2048).mean() == pytest.approx(kept.loss, abs=1e-6)
    (tmp_path / "longrope2-2x.json").write_text(kept.model_copy(update={"factors": (2.0,) * PAIRS}).model_dump_json())
    assert load_or_search(config, models, inputs, 2, tmp_path) == (2.0,) * PAIRS  # taken as it is
    other = config.model_copy(update={"seed": 1})
    assert load_or_search(other, models, inputs, 2, tmp_path) != (2.0,) * PAIRS


def test_needles_judge_where_there_are_some(config: EvaluationConfig, models: Models, tmp_path: Path) -> None:
    words = {"keys": ("Tom", "Lily", "Ben"), "values": ("cats", "dogs"), "needles": 1}
    recall = {"samples": 2, "fact": "{key} likes {value}. ", "question": "{key} likes", **words}
    few = {"population": 4, "generations": 1}
    asked = EvaluationConfig.model_validate(config.model_dump() | {"recall": recall, "longrope2": few})
    inputs = read_inputs(asked, models)
    assert len(inputs.unscored) == 0
    load_or_search(asked, models, inputs, 2, tmp_path)
    assert json.loads((tmp_path / "longrope2-2x.json").read_text())["judged_by"] == "needles"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"factors\.json does not exist; give a JSON file or null"),
        ("{", r"factors\.json: not JSON: \w"),
        ("[1]", "nothing fit for 2x"),
        ('{"4": [1, 1]}', "nothing fit for 2x"),
        ('{"2": [0.5, 1]}', "nothing fit for 2x"),
        ('{"2": [1, 2, 3]}', "2x has 3 factors; give 2"),
    ],
)
def test_files_of_factors_that_do_not_fit(content: str | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "factors.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=problem):
        read_factors(LongRopeConfig(factors=path), (1, 2), 2)


def test_given_factors_are_taken_by_context_factor(tmp_path: Path) -> None:
    (tmp_path / "factors.json").write_text('{"2": [1, 2.5], "4": [1, 5]}')
    assert read_factors(LongRopeConfig(factors=tmp_path / "factors.json"), (1, 2), 2) == {2: (1.0, 2.5)}
    assert read_factors(LongRopeConfig(), (1, 2), 2) == {}


def test_too_little_text_for_a_search_is_refused(config: EvaluationConfig, models: Models) -> None:
    greedy = config.model_copy(update={"longrope2": LongRopeConfig(tokens=10**6)})
    with pytest.raises(EvaluationError, match=r"the search of longrope2 takes 1000001 others; .* longrope2.factors"):
        read_inputs(greedy, models)
