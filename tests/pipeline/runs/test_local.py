"""A run's folder: complete stages are skipped, others refused, a kill leaves what the next attempt goes on with."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.errors import EvaluationError
from eval.probes.run import ProbeResults
from eval.results import Results
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import load_recipe
from pipeline.runs.manifest import Manifest
from pipeline.stages.evaluation import EvaluationStage
from pipeline.stages.run import run, run_task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(raw_recipe: dict[str, Any], drope: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, made once by the command line; tests that change it work on a copy."""
    root = tmp_path_factory.mktemp("finished")
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**raw_recipe, "runs_dir": str(root / "runs")}))
    result = drope("run", recipe)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"report: {root / 'runs' / 'tiny' / 'report' / 'report.html'}"
    return root


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the whole run, with its recipe."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    text = (finished / "recipe.yaml").read_text().replace(str(finished), str(tmp_path))
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path


@pytest.mark.real_processes
def test_every_stage_left_a_manifest_with_its_lineage(finished: Path) -> None:
    manifests = {path.parent.name: Manifest.load(path.parent) for path in finished.glob("runs/tiny/*/manifest.json")}
    assert set(manifests) == {"data", "surgery", "recalibration", "export", "evaluation", "report"}
    for manifest in manifests.values():
        for name in manifest.inputs.keys() & manifests.keys():
            assert manifest.inputs[name] == manifests[name].digest
    assert manifests["recalibration"].inputs.keys() == {"data", "surgery"}
    assert manifests["surgery"].facts["verification"]["comparisons"]["with RoPE"]["top1_agreement"] == 1.0
    assert manifests["export"].facts["drope"]["mean_difference"] < 1e-5


def test_a_finished_run_is_probed_with_its_export_on_its_text(copied: Path, drope: Any) -> None:
    made = drope("probe", copied / "recipe.yaml", "--length", 16)
    assert made.returncode == 0, made.stderr
    outcome = ProbeResults.model_validate_json((copied / "runs/tiny/probes/probes.json").read_bytes())
    assert outcome.subjects[-1].name == "DroPE"
    assert {layer.subject for layer in outcome.layers if layer.sequence == "text"} == {
        one.name for one in outcome.subjects
    }
    at_rest = [layer for layer in outcome.layers if (layer.subject, layer.sequence) == ("DroPE", "constant")]
    assert all(max(layer.bias.values()) < 1e-7 for layer in at_rest if layer.epsilon == 0)  # the softmax is in fp32
    with_rope = [layer for layer in outcome.layers if (layer.subject, layer.sequence) == ("RoPE", "constant")]
    assert all(min(layer.bias.values()) > 1e-5 for layer in with_rope if layer.epsilon == 0)
    refused = drope("probe", copied / "recipe.yaml", f"model.path={copied / 'runs/tiny/export/drope'}")
    assert refused.returncode == 2 and "it has no RoPE, so there is nothing to compare" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.long
def test_an_evaluation_in_tasks_gives_the_results_of_one(copied: Path, drope: Any) -> None:
    """Tasks in any order, one of them again after its work was lost; nothing is put together that is not whole."""
    evaluation = copied / "runs/tiny/evaluation"
    whole = Results.load(evaluation)
    shutil.rmtree(evaluation)
    shutil.rmtree(copied / "runs/tiny/report")
    with pytest.raises(EvaluationError, match="4 of 4 units are not scored, the first loss-rope-1x"):
        EvaluationStage().check_merge(load_recipe(copied / "recipe.yaml"))
    made = drope("evaluate", copied / "recipe.yaml", "--task", 2, "--of", 3)
    assert made.returncode == 0, made.stderr
    evaluate_tasks(copied / "recipe.yaml", 0, 1)
    assert not (evaluation / "results.json").exists()
    (evaluation / "units" / "loss-drope-1x.json").unlink()
    lost = drope("evaluate", copied / "recipe.yaml", "--merge")
    assert lost.returncode == 2 and "1 of 4 units are not scored, the first loss-drope-1x" in lost.stderr
    with pytest.raises(RecipeError, match=r"config\.seed: 0 -> 5"):
        run_task(EvaluationStage(), load_recipe(copied / "recipe.yaml", ("evaluation.seed=5",)), 0, 3)
    before = {path.name: path.stat().st_mtime_ns for path in (evaluation / "units").iterdir()}
    evaluate_tasks(copied / "recipe.yaml", 0, 1, 2)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in (evaluation / "units").iterdir()}.items()
    merged = drope("evaluate", copied / "recipe.yaml", "--merge")
    assert merged.returncode == 0, merged.stderr
    outcome = Results.load(evaluation)
    assert [score.model_copy(update={"seconds": 0.0}) for score in outcome.scores] == [
        score.model_copy(update={"seconds": 0.0}) for score in whole.scores
    ]
    assert outcome.values == whole.values and Manifest.load(evaluation) is not None


def evaluate_tasks(recipe: Path, *tasks: int) -> None:
    """Those of three tasks, one after the other in one process that is not this one: its threads may be other ones."""
    program = (
        "import sys; from pipeline.cli import main\nfor call in sys.argv[1:]: main(call.split(), standalone_mode=False)"
    )
    calls = [f"evaluate {recipe} --task {task} --of 3" for task in tasks]
    subprocess.run([sys.executable, "-c", program, *calls], check=True, capture_output=True)


def test_tasks_that_make_no_sense(copied: Path, drope: Any) -> None:
    for options, problem in (
        (("--task", 3, "--of", 3), "tasks are counted from 0 to 2"),
        (("--task", 0), "--task I and --of N go together"),
        (("--task", 0, "--of", 2, "--merge"), "without --merge"),
    ):
        refused = drope("evaluate", copied / "recipe.yaml", *options)
        assert refused.returncode == 2 and problem in refused.stderr
    shutil.rmtree(copied / "runs/tiny/export")
    shutil.rmtree(copied / "runs/tiny/evaluation")
    early = drope("evaluate", copied / "recipe.yaml", "--task", 0, "--of", 2)
    assert early.returncode == 2 and "stage evaluation needs stage export, which is not complete" in early.stderr


def test_a_second_run_skips_everything(finished: Path, drope: Any) -> None:
    result = drope("run", finished / "recipe.yaml")
    assert result.returncode == 0
    assert result.stderr.count("complete, skipped") == 6


def test_a_changed_recipe_is_refused_and_nothing_touched(finished: Path, drope: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*") if path.is_file()}
    result = drope("run", finished / "recipe.yaml", "recalibration.lr=5e-4")
    assert result.returncode == 2
    assert "config.lr: 0.001 -> 0.0005" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*") if path.is_file()}


def test_changed_documents_are_refused(copied: Path, documents: Path, drope: Any, tmp_path: Path) -> None:
    other = tmp_path / documents.name
    other.write_text(documents.read_text() + '{"text": "w1 w2"}\n')
    recipe = yaml.safe_load((copied / "recipe.yaml").read_text())
    recorded = json.loads((copied / "runs/tiny/data/manifest.json").read_text())
    recorded["config"]["sources"][0]["path"] = recipe["data"]["sources"][0]["path"] = str(other)
    key = next(key for key in recorded["inputs"] if key.startswith("source 0"))
    recorded["inputs"] = {**recorded["inputs"], f"source 0 ({other})": recorded["inputs"].pop(key)}
    (copied / "runs/tiny/data/manifest.json").write_text(json.dumps(recorded))
    (copied / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = drope("run", copied / "recipe.yaml")
    assert result.returncode == 2
    assert "inputs.source 0" in result.stderr


def test_a_later_stage_of_other_inputs_is_refused(copied: Path, drope: Any) -> None:
    manifest = copied / "runs/tiny/recalibration/manifest.json"
    recorded = json.loads(manifest.read_text())
    recorded["outputs"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(recorded))
    result = drope("run", copied / "recipe.yaml")
    assert result.returncode == 2
    assert "export" in result.stderr and "inputs.recalibration" in result.stderr


def test_a_lost_output_is_named(copied: Path, drope: Any) -> None:
    lost = copied / "runs/tiny/surgery/layout.json"
    lost.unlink()
    result = drope("run", copied / "recipe.yaml")
    assert result.returncode == 2
    assert str(lost) in result.stderr


def test_one_stage_commands_need_the_stages_before_them(write_recipe: Callable[..., Path], drope: Any) -> None:
    result = drope("export", write_recipe())
    assert result.returncode == 2
    assert "needs stage recalibration" in result.stderr


def test_two_runs_at_once_are_refused(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    import fcntl

    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    with (folder / ".lock-data").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RecipeError, match="another process is running stage data"):
            run(load_recipe(write_recipe()), ("data",))


def test_inspect_knows_everything_in_a_run(finished: Path, tiny_model: Path, drope: Any) -> None:
    run_dir = finished / "runs" / "tiny"
    kinds = {
        run_dir: "run",
        run_dir / "recalibration": "recalibration stage",
        run_dir / "recalibration" / "layout": "tensor-parallel layout",
        next((run_dir / "data" / "shards").glob("*.bin")): "Megatron shard",
        run_dir / "export" / "drope": "Hugging Face checkpoint",
        tiny_model: "Hugging Face checkpoint",
    }
    for path, kind in kinds.items():
        result = drope("inspect", path, "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["kind"] == kind


def test_inspect_verify_names_a_flipped_byte(copied: Path, drope: Any) -> None:
    assert drope("inspect", copied / "runs/tiny", "--verify").returncode == 0
    victim = next((copied / "runs/tiny/recalibration/layout").glob("tp01-*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    victim.write_bytes(content)
    result = drope("inspect", copied / "runs/tiny/recalibration/layout", "--verify")
    assert result.returncode == 2 and "TP rank 1" in result.stderr
    result = drope("inspect", copied / "runs/tiny/recalibration", "--verify")
    assert result.returncode == 2 and victim.name in result.stderr


def test_a_stage_that_was_cut_off_with_other_settings_is_refused(copied: Path, drope: Any) -> None:
    folder = copied / "runs/tiny/recalibration"
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "started.json").write_text(json.dumps({"config": manifest["config"], "inputs": manifest["inputs"]}))
    (folder / "manifest.json").unlink()
    result = drope("run", copied / "recipe.yaml", "recalibration.batch=8")
    assert result.returncode == 2
    assert "config.batch: 4 -> 8" in result.stderr


@pytest.mark.parametrize("small_disk", ["100k", "400k"], indirect=True)
def test_a_full_disk_is_one_clear_line(write_recipe: Callable[..., Path], small_disk: Path, drope: Any) -> None:
    recipe = write_recipe(runs_dir=str(small_disk))
    result = drope("run", recipe)
    assert result.returncode == 2, result.stderr
    assert "disk is full" in result.stderr.strip().splitlines()[-1]
    leftovers = [path for path in small_disk.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    assert leftovers == []
    for checkpoint in small_disk.rglob("step-*"):
        assert (checkpoint / "complete").is_file()
