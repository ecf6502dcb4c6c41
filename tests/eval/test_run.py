"""The stage as a whole on the real checkpoint: scores, files, going on after a kill."""

import csv
import json
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.config import EvaluationConfig
from eval.errors import EvaluationError
from eval.models import Models
from eval.results import Results, Score
from eval.run import run
from eval.units import plan_units
from tests.forked import REPOSITORY, Starter


@pytest.fixture(scope="module")
def config(benchmarks: Path) -> EvaluationConfig:
    recall = {
        "samples": 6,
        "needles": 2,
        "fact": "{key} likes {value}. ",
        "question": "{key} likes",
        "keys": ("Tom", "Lily", "Ben", "Sue"),
        "values": ("cats", "dogs", "red balls", "cake"),
    }
    return EvaluationConfig(
        variants=("rope", "pi", "ntk", "yarn", "drope", "drope_scaled"),
        context_factors=(1, 2),
        batch_tokens=2048,
        softmax_scale_c=0.2,
        loss={"tokens": 2048},
        recall=recall,
        harness=({"name": "arc", "path": benchmarks / "arc_easy.jsonl", "limit": 8},),
    )


@pytest.fixture(scope="module")
def whole(config: EvaluationConfig, models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out_dir = tmp_path_factory.mktemp("whole") / "evaluation"
    return out_dir, run(config, models=models, out_dir=out_dir)


def without_time(results: Results) -> list[Score]:
    return [score.model_copy(update={"seconds": 0.0}) for score in results.scores]


def test_every_cell_is_scored(whole: tuple[Path, Results], config: EvaluationConfig) -> None:
    scores = {(s.task, s.metric, s.variant, s.context_factor): s for s in whole[1].scores}
    assert len(scores) == len(whole[1].scores) == 6 * 2 + 6 * 2 + 6 * 2
    for variant in config.variants:
        for factor, rows in ((1, 4), (2, 2)):
            loss, recall = (
                scores["loss", "nats_per_token", variant, factor],
                scores["recall", "exact_match", variant, factor],
            )
            assert (loss.length, loss.samples, recall.length, recall.samples) == (512 * factor, rows, 512 * factor, 6)
            assert loss.stderr > 0
    assert scores["loss", "nats_per_token", "pi", 1].value == scores["loss", "nats_per_token", "rope", 1].value
    assert scores["loss", "nats_per_token", "pi", 2].value != scores["loss", "nats_per_token", "rope", 2].value
    scaled, plain = (scores["loss", "nats_per_token", v, 2].value for v in ("drope_scaled", "drope"))
    assert scaled != plain
    assert whole[1].chance == {"recall": 0.25}
    assert {curve.context_factor for curve in whole[1].curves} == {2}


def test_files_hold_the_results(whole: tuple[Path, Results]) -> None:
    out_dir, results = whole
    assert Results.load(out_dir) == results
    lines = list(csv.DictReader((out_dir / "results.csv").open()))
    assert [float(line["value"]) for line in lines] == [score.value for score in results.scores]
    recall = [json.loads(line) for line in (out_dir / "samples-recall-yarn-2x.jsonl").open()]
    assert len(recall) == 6
    value = next(s.value for s in results.scores if (s.task, s.variant, s.context_factor) == ("recall", "yarn", 2))
    assert sum(record["right"] for record in recall) / 6 == pytest.approx(value)
    assert all((record["got"] == record["expected"]) is record["right"] for record in recall)
    assert not list(out_dir.rglob("*.tmp"))


def test_finished_evaluation_is_not_scored_again(
    whole: tuple[Path, Results], config: EvaluationConfig, models: Models
) -> None:
    out_dir, results = whole
    before = {path: path.stat().st_mtime_ns for path in (out_dir / "units").iterdir()}
    assert run(config, models=models, out_dir=out_dir).scores == results.scores
    assert {path: path.stat().st_mtime_ns for path in (out_dir / "units").iterdir()} == before


def test_changed_configuration_scores_only_what_it_touches(
    whole: tuple[Path, Results], config: EvaluationConfig, models: Models, tmp_path: Path
) -> None:
    import shutil

    out_dir = shutil.copytree(whole[0], tmp_path / "evaluation")
    before = {path.name: path.stat().st_mtime_ns for path in (out_dir / "units").iterdir()}
    changed = config.model_copy(update={"variants": ("rope", "drope_scaled"), "softmax_scale_c": 0.3})
    results = run(changed, models=models, out_dir=out_dir)
    after = {path.name: path.stat().st_mtime_ns for path in (out_dir / "units").iterdir()}
    rewritten = {name for name in after if after[name] != before.get(name)}
    assert rewritten == {"loss-drope_scaled-2x.json", "recall-drope_scaled-2x.json"}
    assert set(after) == {f"{unit.name}.json" for unit in plan_units(changed)}
    assert not (out_dir / "samples-recall-pi-2x.jsonl").exists()
    old = [s for s in without_time(whole[1]) if s.variant == "rope"]
    assert [s for s in without_time(results) if s.variant == "rope"] == old


def test_goes_on_after_a_kill(
    whole: tuple[Path, Results], config: EvaluationConfig, models: Models, starter: Starter, tmp_path: Path
) -> None:
    out_dir = tmp_path / "evaluation"
    (tmp_path / "arguments").write_bytes(pickle.dumps((config, models, out_dir)))
    program = (
        "import pickle, sys, torch; torch.set_num_threads(1); from eval.run import run\n"
        "config, models, out_dir = pickle.load(open(sys.argv[1], 'rb')); run(config, models=models, out_dir=out_dir)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "arguments")]
    process = starter.Popen(command, cwd=REPOSITORY)
    deadline = time.monotonic() + 120
    while len(list((out_dir / "units").glob("*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in (out_dir / "units").glob("*.json")}
    assert 3 <= len(finished) < len(plan_units(config))
    assert not (out_dir / "results.json").exists()

    results = run(config, models=models, out_dir=out_dir)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "finished units are kept as they are"
    assert without_time(Results.load(out_dir)) == without_time(results) == without_time(whole[1])


def test_results_of_another_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"results\.json does not exist; run the evaluation first"):
        Results.load(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 2}')
    with pytest.raises(EvaluationError, match=r"unknown format: schema_version: Input should be 3; evaluate again"):
        Results.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(scores=[]), "scores: Tuple should have at least 1 item"),
        (
            lambda content: content["scores"][3].update(value=float("nan")),
            "scores.3.value: Input should be a finite number",
        ),
        (lambda content: content["scores"][3].update(value=None), "scores.3.value: Input should be a valid number"),
        (lambda content: content["scores"][0].update(stderr=float("inf")), "scores.0.stderr: Input should be a finite"),
        (
            lambda content: content["scores"][0].update(samples=0),
            "scores.0.samples: Input should be greater than or equal",
        ),
        (
            lambda content: content["values"][0]["values"].pop(),
            "results: loss of rope at 1x: 3 values of nats_per_token are",
        ),
        (
            lambda content: content["scores"].pop(0),
            "results: loss of rope at 1x: 4 values of nats_per_token are not those",
        ),
        (
            lambda content: content["values"][0]["values"].__setitem__(0, float("nan")),
            "values.0.values.0: Input should be",
        ),
        (lambda content: content["curves"][0]["loss"].__setitem__(5, float("nan")), "curves.0.loss.5: Input should be"),
    ],
)
def test_results_with_gaps_are_refused(
    whole: tuple[Path, Results], change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    content = json.loads((whole[0] / "results.json").read_text())
    change(content)
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=rf"results.json: unknown format: {message}.*; evaluate again$") as caught:
        Results.load(tmp_path)
    assert "\n" not in str(caught.value)
