"""Nothing unfinished, partial or changed is shown as if it were the run's."""

import json
from pathlib import Path

import pytest

from eval.errors import EvaluationError
from pipeline.errors import RecipeError
from pipeline.report.inputs import read_run
from pipeline.runs.manifest import Manifest, describe_outputs
from pipeline.stages.order import REPORT


def test_whole_run(full) -> None:
    data = read_run(full.build(), full.folder, REPORT.reported)
    assert list(data.manifests) == ["data", "surgery", "recalibration", "control", "export", "evaluation"]
    assert data.notices == ()
    assert data.results == full.results(full.recipe().evaluation)
    assert [len(lines) for lines in data.metrics.values()] == [61, 61]
    assert list(data.positions) == ["recalibration", "control"]
    at_the_end = data.positions["recalibration"]
    assert (at_the_end.length, len(at_the_end.losses), at_the_end.losses[-1]) == (256, 16, None)
    assert at_the_end.losses[0] == data.metrics["recalibration"][-1]["validation_loss"]


def test_trainings_of_earlier_versions_have_no_positions(full) -> None:
    recipe = full.build()
    for name in ("recalibration", "control"):
        (full.folder / name / "validation.jsonl").unlink()
        manifest = Manifest.load(full.folder / name)
        outputs = tuple(output for output in manifest.outputs if output.path != "validation.jsonl")
        manifest.model_copy(update={"outputs": outputs}).save(full.folder / name)
    assert read_run(recipe, full.folder, REPORT.reported).positions == {}


def test_scores_without_a_manifest_are_not_shown(run) -> None:
    recipe = run.build()
    (run.folder / "evaluation" / "manifest.json").unlink()
    data = read_run(recipe, run.folder, REPORT.reported)
    assert data.results is None
    assert data.notices == ("Not complete and therefore left out: evaluation.",)


@pytest.mark.parametrize(("task", "missing"), [("recall", "recall of pi at 2x"), ("loss", "loss of pi at 2x")])
def test_partial_scores_are_not_shown(run, task: str, missing: str) -> None:
    run.change = lambda scores: [s for s in scores if (s.task, s.variant, s.context_factor) != (task, "pi", 2)]
    data = read_run(run.build(), run.folder, REPORT.reported)
    assert data.results is None
    assert data.notices == (
        f"The evaluation is partial and therefore left out: 1 scores are missing, the first is {missing}.",
    )


def test_a_score_of_fewer_samples_is_missing(run) -> None:
    run.change = lambda scores: [
        score.model_copy(update={"samples": 199}) if (score.task, score.variant) == ("recall", "drope") else score
        for score in scores
    ]
    data = read_run(run.build(), run.folder, REPORT.reported)
    assert data.results is None and "4 scores are missing, the first is recall of drope at 1x" in data.notices[0]


def test_results_without_a_number_are_refused(run) -> None:
    """Also where the stage's manifest vouches for the file."""
    recipe = run.build()
    path = run.folder / "evaluation" / "results.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    result["scores"][2]["value"] = None
    path.write_text(json.dumps(result), encoding="utf-8")
    manifest = Manifest.load(run.folder / "evaluation")
    assert manifest is not None
    outputs = describe_outputs(run.folder / "evaluation", [path])
    manifest.model_copy(update={"outputs": tuple(outputs)}).save(run.folder / "evaluation")
    with pytest.raises(EvaluationError, match=r"results\.json: unknown format: scores\.2\.value: .*; evaluate again"):
        read_run(recipe, run.folder, REPORT.reported)


def test_a_missing_harness_task_is_partial(full) -> None:
    full.change = lambda scores: [score for score in scores if score.task != "winogrande"]
    data = read_run(full.build(), full.folder, REPORT.reported)
    assert data.results is None and "7 scores are missing, the first is winogrande of rope at 1x" in data.notices[0]


@pytest.mark.parametrize(
    "name", ["evaluation/results.json", "recalibration/metrics.jsonl", "recalibration/validation.jsonl"]
)
def test_a_changed_file_is_refused(run, name: str) -> None:
    recipe = run.build()
    path = run.folder / name
    text = path.read_text(encoding="utf-8")
    changed = text.replace("0.81", "0.99").replace("9000.0", "9000.1").replace("null", "0.00")
    path.write_text(changed, encoding="utf-8")
    assert path.stat().st_size == len(text)
    with pytest.raises(RecipeError, match=f"{name}: gone or changed since the stage was complete; remove"):
        read_run(recipe, run.folder, REPORT.reported)
    path.unlink()
    with pytest.raises(RecipeError, match=f"{name}: gone or changed since the stage was complete; remove"):
        read_run(recipe, run.folder, REPORT.reported)


def test_no_stage_is_complete(run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no stage is complete, so there is nothing to report; start with drope run"):
        read_run(run.recipe(), tmp_path / "nowhere", REPORT.reported)


def test_a_stage_made_from_another_is_named(run) -> None:
    recipe = run.build()
    manifest = Manifest.load(run.folder / "export")
    assert manifest is not None
    manifest.model_copy(update={"inputs": manifest.inputs | {"recalibration": "00" * 32}}).save(run.folder / "export")
    assert read_run(recipe, run.folder, REPORT.reported).notices == (
        "Stage export was made from another recalibration than the one in this run; its numbers belong to that one.",
    )


def test_a_run_without_its_recipe_file_shows_the_recipe_given(run) -> None:
    recipe = run.build()
    written = (run.folder / "recipe.yaml").read_text(encoding="utf-8")
    (run.folder / "recipe.yaml").unlink()
    assert read_run(recipe, run.folder, REPORT.reported).recipe_text == written
