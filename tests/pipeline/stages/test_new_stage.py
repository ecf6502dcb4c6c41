"""A stage that is added is a class and a place in the order; all that runs, plans and submits stages knows it then."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.allocation.job import do
from pipeline.cluster.job_options import JobOptions
from pipeline.cluster.profiles import load_profile
from pipeline.cluster.status.run_status import status_of
from pipeline.cluster.submission.submit import planned_scripts
from pipeline.errors import RecipeError
from pipeline.launch.machines import Machines
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runs.folder import begin_run, is_complete
from pipeline.runs.manifest import Manifest
from pipeline.runs.stage import ArrayStage
from pipeline.stages import order
from pipeline.stages.run import run, run_task
from pipeline.tools.plan import make_plan
from slurm.step import Step


class TallyStage(ArrayStage):
    """Leaves the length of the run's name, a task for each letter."""

    name = "tally"
    help = "count the letters of the run's name"
    resumes = True
    scratch = ("letters",)
    merge_finishes = True
    merge_resources = "report"

    def config(self, recipe: Recipe) -> dict[str, Any]:
        return {"name": recipe.name}

    def run(self, recipe: Recipe, run_dir: Path, stage_dir: Path, machines: Machines) -> dict[str, Any]:
        for letter in range(len(recipe.name)):
            self._count(stage_dir, letter)
        (stage_dir / "tally.txt").write_text(f"{self.progress(stage_dir)}\n")
        return {"letters": self.progress(stage_dir)}

    def most_tasks(self, recipe: Recipe) -> int:
        return len(recipe.name)

    def run_task(self, recipe: Recipe, task: int, of: int, check: Callable[[], None]) -> None:
        check()
        begin_run(recipe)
        for letter in range(task, len(recipe.name), of):
            self._count(recipe.folder / self.name, letter)

    def undone_tasks(self, recipe: Recipe, of: int) -> list[int]:
        letters = recipe.folder / self.name / "letters"
        return sorted({letter % of for letter in range(len(recipe.name)) if not (letters / str(letter)).is_file()})

    def check_merge(self, recipe: Recipe) -> None:
        if undone := self.undone_tasks(recipe, len(recipe.name)):
            raise RecipeError(f"{len(undone)} letters are not counted")

    def progress(self, stage_dir: Path) -> int:
        return sum(1 for _ in (stage_dir / "letters").glob("*"))

    def disk_bytes(self, recipe: Recipe, shape: object, tokens: int) -> dict[str, int]:
        return {"tally": 2}

    def _count(self, stage_dir: Path, letter: int) -> None:
        (stage_dir / "letters").mkdir(parents=True, exist_ok=True)
        (stage_dir / "letters" / str(letter)).touch()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> TallyStage:
    """The new stage, in the order after all others."""
    added = TallyStage()
    monkeypatch.setattr(order, "STAGES", (*order.STAGES, added))
    return added


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Recipe:
    return load_recipe(write_recipe())


def test_it_runs_is_skipped_and_is_refused_with_other_settings(
    stage: TallyStage, recipe: Recipe, write_recipe: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert make_plan(recipe).stages["tally"] == "to do"
    run(recipe, ("tally",))
    manifest = Manifest.load(recipe.folder / "tally")
    assert manifest is not None and manifest.facts == {"letters": 4}
    assert [output.path for output in manifest.outputs] == ["tally.txt"]
    assert not any("skipped" in line for line in caplog.messages)
    run(recipe, ("tally",))
    assert "tally         complete, skipped" in caplog.messages
    plan = make_plan(recipe)
    assert plan.stages["tally"] == "complete" and plan.disk["tally"] == 2
    with pytest.raises(RecipeError, match=r"^--stage talley: this recipe has data, .*, report, tally$"):
        run(recipe, ("talley",))
    manifest.model_copy(update={"config": {"name": "another"}}).save(recipe.folder / "tally")
    with pytest.raises(RecipeError, match=r'holds a tally stage of another recipe: config\.name: "another" -> "tiny"'):
        run(recipe, ("tally",))


def test_its_tasks_are_submitted_run_and_merged(stage: TallyStage, recipe: Recipe, tmp_path: Path) -> None:
    profile_file = tmp_path / "cluster.yaml"
    profile_file.write_text(
        "pools: {cpu: {partition: small}, other: {partition: large}}\n"
        "stages: {tally: {pool: other, tasks: 3}, report: {pool: cpu}}\n"
    )
    profile = load_profile(str(profile_file))
    run_task(stage, recipe, 1, 3)
    assert stage.undone_tasks(recipe, 3) == [0, 2]
    array, merge = planned_scripts(recipe, profile, first="tally", last=None)
    assert (array.stage_job.name, array.job.array, array.stage_job.tasks) == ("tally", (0, 2), 3)
    assert re.search(r"^#SBATCH .*--array=0,2$", array.text, re.MULTILINE) and "--part tally --of 3" in array.text
    assert (merge.stage_job.name, merge.stage_job.needs) == ("tally-merge", ("tally",))
    assert "--partition=large" in array.text and "--partition=small" in merge.text
    assert [script.job.resources.nodes for script in (array, merge)] == [1, 1]

    step = Step(7, 0, 7, 1, 0, ("n1",), None)
    do(recipe, stage, JobOptions(part="tally", of=3), step)
    assert stage.undone_tasks(recipe, 3) == [2] and not is_complete(stage, recipe)
    with pytest.raises(RecipeError, match=r"^1 letters are not counted$"):
        stage.check_merge(recipe)
    run_task(stage, recipe, 2, 3)
    do(recipe, stage, JobOptions(part="tally-merge"), step)
    assert is_complete(stage, recipe)


def test_its_status_is_shown(stage: TallyStage, recipe: Recipe) -> None:
    run(recipe, ("tally",))
    shown = {status.stage: status.state for status in status_of(recipe.folder).stages}
    assert shown["tally"] == "complete" and shown["report"] == "not submitted"
