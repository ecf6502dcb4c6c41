import errno
import os
from itertools import pairwise
from pathlib import Path

import pytest

from eval.config import EvaluationConfig
from eval.results import Curve, SampleValues, Score
from eval.run import share_of
from eval.units import UNITS, Unit, UnitResult, curves_of, keep, kept, plan_units, scores_of, unit_digest, values_of
from foundation.errors import DiskError

RECALL = {"fact": "{key} {value} ", "question": "{key}", "keys": ("a", "b"), "values": ("x", "y"), "needles": 1}
TASK = {"name": "arc", "path": "arc.jsonl"}
LINEAGE = {"source": "1", "tokenizer": "2"}


def full_config(**changes: object) -> EvaluationConfig:
    variants = ("rope", "pi", "ntk", "yarn", "drope", "drope_scaled", "control")
    fields = {
        "variants": variants,
        "context_factors": (1, 2),
        "recall": RECALL,
        "harness": (TASK,),
        "softmax_scale_c": 0.1,
    }
    return EvaluationConfig(**{**fields, **changes})


def test_plan_computes_equal_variants_once_and_each_model_in_a_row() -> None:
    units = plan_units(full_config())
    assert len(units) == len(set(units))
    at_1x = {unit.variant for unit in units if unit.factor == 1}
    assert at_1x == {"rope", "drope", "control"}
    assert len([unit for unit in units if unit.task == "loss"]) == 3 + 7
    assert len([unit for unit in units if unit.task == "recall"]) == 3 + 7
    assert [unit.variant for unit in units if unit.task == "arc"] == ["rope", "drope", "control"]
    models = [unit.model for unit in units]
    changes = sum(a != b for a, b in pairwise(models))
    assert changes == len(set(models)) - 1 == 6, "rope, drope, control once; pi, ntk, yarn, drope_scaled once at 2x"


def test_a_scaling_alone_still_has_its_1x() -> None:
    config = EvaluationConfig(variants=("pi",), context_factors=(1, 4))
    assert plan_units(config) == [Unit("loss", "loss", "rope", 1), Unit("loss", "loss", "pi", 4)]


def test_needles_have_their_own_lengths_and_longbench_one() -> None:
    niah = {"tasks": ("niah_single_1", "niah_depth"), "context_factors": (2, 16)}
    config = EvaluationConfig(variants=("rope", "pi"), context_factors=(1, 4), niah=niah, longbench={"tasks": ("lcc",)})
    planned = {(unit.task, unit.variant, unit.factor) for unit in plan_units(config) if unit.family != "loss"}
    both = [(task, variant) for task in ("niah_single_1", "niah_depth") for variant in ("rope", "pi")]
    expected = {(*one, factor) for one in both for factor in (2, 16)}
    assert planned == expected | {("lcc", "rope", 4), ("lcc", "pi", 4)}
    assert config.longest == 16


def result_of(unit: Unit, config: EvaluationConfig) -> UnitResult:
    length = None if unit.family == "harness" else unit.factor * 10
    metrics = ("acc", "acc_norm") if unit.family == "harness" else ("m",)
    scores = tuple(
        Score(
            variant=unit.variant, task=unit.task, metric=metric, context_factor=unit.factor, length=length,
            value=unit.factor, stderr=0.1, samples=5, seconds=1.0,
        )
        for metric in metrics
    )  # fmt: skip
    curve = Curve(variant=unit.variant, context_factor=unit.factor, length=10, edges=(0, 10), loss=(1.0,))
    digest = unit_digest(unit, config, LINEAGE)
    values = tuple(
        SampleValues(variant=unit.variant, task=unit.task, metric=metric, context_factor=unit.factor, values=(1.0, 2.0))
        for metric in metrics
    )
    curve = curve if unit.task == "loss" else None
    return UnitResult(digest=digest, scores=scores, values=values, curve=curve, seconds=1.0)


def test_scores_and_curves_are_those_of_the_variants_asked_for() -> None:
    config = full_config()
    results = {unit: result_of(unit, config) for unit in plan_units(config)}
    scores = scores_of(config, results)
    assert len(scores) == 7 * 2 + 7 * 2 + 7 * 2, "loss and recall at two lengths, two metrics of arc"
    assert {score.variant for score in scores if score.task == "arc"} == set(config.variants)
    behind = [(one.variant, one.task, one.metric, one.context_factor) for one in values_of(config, results)]
    assert behind == [(one.variant, one.task, one.metric, one.context_factor) for one in scores]
    assert [(c.variant, c.context_factor) for c in curves_of(config, results)] == [(v, 2) for v in config.variants]


def test_kept_unit_is_read_back(tmp_path: Path) -> None:
    config, unit = full_config(), Unit("loss", "loss", "pi", 2)
    (tmp_path / UNITS).mkdir()
    result = result_of(unit, config)
    assert kept(tmp_path, unit, result.digest) is None
    keep(tmp_path, unit, result)
    assert kept(tmp_path, unit, result.digest) == result
    assert kept(tmp_path, unit, "another") is None
    (tmp_path / UNITS / "loss-pi-2x.json").write_text("{")
    assert kept(tmp_path, unit, result.digest) is None


def test_a_unit_that_the_disk_cannot_hold_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, unit = full_config(), Unit("loss", "loss", "pi", 2)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"loss-pi-2x\.json: the disk is full; free some space and run again, finished"):
        keep(tmp_path, unit, result_of(unit, config))
    assert list((tmp_path / UNITS).iterdir()) == []


@pytest.mark.parametrize(
    ("unit", "changed", "same"),
    [
        (Unit("loss", "loss", "pi", 2), {"loss": {"tokens": 9}}, False),
        (Unit("loss", "loss", "pi", 2), {"dtype": "bfloat16"}, False),
        (Unit("loss", "loss", "pi", 2), {"context_factors": (1, 2, 4)}, True),
        (Unit("loss", "loss", "pi", 2), {"variants": ("pi",)}, True),
        (Unit("loss", "loss", "pi", 2), {"recall": None}, True),
        (Unit("loss", "loss", "pi", 2), {"softmax_scale_c": 0.5}, True),
        (Unit("loss", "loss", "drope_scaled", 2), {"softmax_scale_c": 0.5}, False),
        (Unit("recall", "recall", "pi", 2), {"recall": {**RECALL, "samples": 3}}, False),
        (Unit("recall", "recall", "pi", 2), {"loss": {"tokens": 9}}, True),
        (Unit("recall", "recall", "pi", 2), {"seed": 1}, False),
        (Unit("niah", "niah_single_1", "pi", 2), {"niah": {"samples": 3}}, False),
        (
            Unit("niah", "niah_single_1", "pi", 2),
            {"niah": {"tasks": ("niah_single_1",), "context_factors": (2,)}},
            True,
        ),
        (Unit("longbench", "lcc", "pi", 2), {"longbench": {"limit": 3}}, False),
        (Unit("longbench", "lcc", "pi", 2), {"longbench": {"tasks": ("lcc",)}}, True),
    ],
)
def test_digest_changes_with_what_the_unit_depends_on(unit: Unit, changed: dict, same: bool) -> None:
    sections = {"niah": {}, "longbench": {}}
    before, after = (unit_digest(unit, full_config(**{**sections, **change}), LINEAGE) for change in ({}, changed))
    assert (before == after) is same


def test_digest_changes_with_the_inputs() -> None:
    unit = Unit("loss", "loss", "pi", 2)
    assert unit_digest(unit, full_config(), LINEAGE) != unit_digest(unit, full_config(), {**LINEAGE, "source": "9"})


@pytest.mark.parametrize("of", [1, 2, 3, 5, 100])
def test_shares_are_all_units_once_and_keep_models_together(of: int) -> None:
    units = plan_units(full_config())
    shares = [share_of(units, task, of) for task in range(of)]
    assert [unit for share in shares for unit in share] == units
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
