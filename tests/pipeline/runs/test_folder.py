"""A run's folder without its training: what is looked at, refused and removed. Whole runs: test_run_local.py."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundation.files import temporary_path
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runs import folder as run_folder
from pipeline.runs.folder import Identity, identify, is_complete, output_files, prepare_folder, save_manifest
from pipeline.runs.manifest import Manifest, now
from pipeline.stages.evaluation import EvaluationStage
from pipeline.stages.order import STAGES
from pipeline.stages.run import run

BY_NAME = {stage.name: stage for stage in STAGES}


def finish(name: str, recipe: Any, content: str) -> None:
    """Leaves stage `name` complete, with one output."""
    stage, folder = BY_NAME[name], recipe.folder / name
    identity = identify(stage, recipe)
    prepare_folder(stage, identity, folder)
    (folder / "output").write_text(content)
    save_manifest(stage, identity, folder, now(), {})


def test_a_stage_killed_while_its_outputs_are_digested_still_knows_its_settings(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe())
    finish("data", recipe, "shards")
    finish("surgery", recipe, "layout")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_folder, "describe_outputs", killed)
        finish("recalibration", recipe, "weights")
    assert not is_complete(BY_NAME["recalibration"], recipe)
    with pytest.raises(RecipeError, match=r"config\.lr: 0\.001 -> 0\.5"):
        is_complete(BY_NAME["recalibration"], load_recipe(write_recipe(), ("recalibration.lr=0.5",)))


def test_a_finished_evaluation_of_an_older_version_is_recognised(write_recipe: Callable[..., Path]) -> None:
    """Its manifest, and that of every later version, calls the context factors `lengths`."""
    recipe = load_recipe(write_recipe())
    for name in ("data", "surgery", "recalibration", "export", "evaluation"):
        finish(name, recipe, name)
    recorded = json.loads((recipe.folder / "evaluation" / "manifest.json").read_text())["config"]
    assert recorded["lengths"] == [1, 2] and "context_factors" not in recorded
    for override in ("evaluation.context_factors=[1, 2]", "evaluation.lengths=[1, 2]"):
        assert is_complete(BY_NAME["evaluation"], load_recipe(write_recipe(), (override,)))
    with pytest.raises(RecipeError, match=r"config\.context_factors: \[1, 2\] -> \[1, 4\]"):
        is_complete(BY_NAME["evaluation"], load_recipe(write_recipe(), ("evaluation.context_factors=[1, 4]",)))


def test_the_mark_of_the_start_is_no_output_and_goes_last(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe())
    finish("surgery", recipe, "layout")
    assert sorted(path.name for path in (recipe.folder / "surgery").iterdir()) == ["manifest.json", "output"]
    assert [output.path for output in Manifest.load(recipe.folder / "surgery").outputs] == ["output"]


def test_later_stages_are_looked_at_again_when_an_input_was_made_anew(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe())
    (recipe.folder).mkdir(parents=True)
    (recipe.folder / "recipe.yaml").touch()
    for name in ("data", "surgery", "recalibration"):
        finish(name, recipe, name)
    shutil.rmtree(recipe.folder / "data")  # the real shards will not be the bytes that recalibration was made from
    with pytest.raises(RecipeError, match=r"recalibration: holds a recalibration stage.*inputs\.data"):
        run(recipe, ("data", "recalibration"))


def test_leftovers_of_a_cut_off_write_do_not_become_outputs(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe())
    stage, folder = BY_NAME["recalibration"], recipe.folder / "recalibration"
    (folder / "layout").mkdir(parents=True)
    (folder / "row-index").mkdir()
    killed = subprocess.Popen(["true"])
    killed.wait()
    of_this_process = temporary_path(folder / "layout" / "tp00.safetensors")
    own = (temporary_path(folder / "layout" / "tp01.safetensors"), temporary_path(folder / "row-index" / "key"))
    of_a_dead_one = [path.with_name(path.name.replace(f"-{os.getpid()}-", f"-{killed.pid}-")) for path in own]
    of_another_version = folder / "layout" / ".tp00-0000.safetensors.77.tmp"
    for path in (of_this_process, of_a_dead_one[0], of_another_version, folder / "layout" / "layout.json"):
        path.touch()
    of_a_dead_one[1].mkdir()  # the index of the rows, cut off while Megatron-core built it
    (of_a_dead_one[1] / "index.npy").touch()
    prepare_folder(stage, Identity(config={}, inputs={}), folder)
    # A task of the stage that lives may be writing its own.
    assert of_this_process.exists() and not any(path.exists() for path in of_a_dead_one)
    (folder / "started.json").unlink()
    assert output_files(stage, folder) == [folder / "layout" / "layout.json"]


def test_a_folder_that_is_no_run_is_left_alone(write_recipe: Callable[..., Path], tmp_path: Path, drope: Any) -> None:
    ours = tmp_path / "runs" / "tiny" / "data" / "mine.txt"
    ours.parent.mkdir(parents=True)
    ours.write_text("not to be lost")
    result = drope("run", write_recipe(), "--stage", "data")
    assert result.returncode == 2 and "not the folder of a run" in result.stderr
    assert ours.read_text() == "not to be lost"


@pytest.mark.parametrize("runs_dir", ["recipe.yaml", "/proc/none", '"a\\0b"'])
def test_a_runs_dir_that_cannot_be_is_one_line(
    write_recipe: Callable[..., Path], tmp_path: Path, drope: Any, runs_dir: str
) -> None:
    result = drope("run", write_recipe(), f"runs_dir={runs_dir}", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("drope: runs_dir = ") and len(result.stderr.strip().splitlines()) == 1


def test_a_setting_that_no_longer_counts_is_not_compared(write_recipe: Callable[..., Path]) -> None:
    """Stages that were complete before validation could change under way are complete still."""
    recipe = load_recipe(write_recipe())
    for name in ("data", "surgery", "recalibration"):
        finish(name, recipe, name)
    folder = recipe.folder / "recalibration"
    manifest = Manifest.load(folder)
    assert manifest is not None and "validation_rows" not in manifest.config
    manifest.model_copy(update={"config": manifest.config | {"validation_rows": 99}}).save(folder)
    assert is_complete(BY_NAME["recalibration"], recipe)
    manifest.model_copy(update={"config": {**manifest.config, "lr": 7.0}}).save(folder)
    with pytest.raises(RecipeError, match=r"config\.lr: 7\.0 -> "):
        is_complete(BY_NAME["recalibration"], recipe)


class EvaluationOfNoStage(EvaluationStage):
    """Its inputs need not be there."""

    def needs(self, recipe: Recipe) -> tuple[str, ...]:
        return ()


def test_a_changed_task_file_is_seen(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"query": "w1", "choices": ["w2", "w3"], "gold": 0}) + "\n")
    recipe = load_recipe(write_recipe(), (f"evaluation.harness=[{{name: arc, path: {tasks}}}]",))
    evaluation = EvaluationOfNoStage()
    folder = recipe.folder / "evaluation"
    identity = identify(evaluation, recipe)
    prepare_folder(evaluation, identity, folder)
    save_manifest(evaluation, identity, folder, now(), {})
    assert is_complete(evaluation, recipe)
    tasks.write_text(json.dumps({"query": "w1", "choices": ["w2", "w3"], "gold": 1}) + "\n")
    with pytest.raises(
        RecipeError, match=r"evaluation: holds a evaluation stage of another recipe: inputs\.task arc: "
    ):
        is_complete(evaluation, recipe)
