"""Inside a job: what ends it, what it goes on without, what it waits for."""

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.cluster import job as jobs
from pipeline.cluster import nodes
from pipeline.cluster.folder import Attempt, Attempts, JobsFolder
from pipeline.cluster.job import Elsewhere, Work, avoid_bad_nodes, await_inputs, fitted, recorded, refuse_endless
from pipeline.cluster.spread import fitting_data_parallel, ranks_of_nodes, usable_slots
from pipeline.errors import OutOfTime, RecipeError, StageFailed, Stopped
from pipeline.launch import patience
from pipeline.launch.patience import patiently, seen
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runs.manifest import now
from pipeline.stages.order import stage_named
from slurm.profile import Resources
from slurm.step import Step

WORK = Work(
    stage="recalibration", does="all", part="recalibration", of=1, offset=0, per_node=2, nodes_min=2, barren=2
)  # fmt: skip


@pytest.fixture
def step() -> Step:
    return Step(7, None, 7, 1, 0, ("n1", "n2"), None)


@pytest.fixture
def folder(tmp_path: Path) -> JobsFolder:
    made = JobsFolder(tmp_path)
    made.make()
    return made


def attempt(progress: int, ended: bool = False, nodes: tuple[str, ...] = ("n1", "n2")) -> Attempt:
    started = now() - timedelta(hours=1)
    return Attempt(restarts=0, nodes=nodes, started=started, progress=progress, ended=now() if ended else None)


def checkpoint(folder: JobsFolder, step: int) -> None:
    path = folder.run / "recalibration" / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "complete").touch()


def test_a_stop_that_brought_something_goes_on(folder: JobsFolder, step: Step) -> None:
    with pytest.raises(Stopped, match="its time"), recorded(folder, step, WORK):
        checkpoint(folder, 40)
        raise OutOfTime("its time is over")
    (only,) = folder.attempts("recalibration", 7, None).attempts
    assert (only.code, only.message, only.nodes, only.progress) == (75, "its time is over", ("n1", "n2"), 0)
    assert (folder.verdicts / "recalibration.7").read_text() == "75\n"


def test_a_time_limit_in_which_nothing_was_finished_is_a_failure(folder: JobsFolder, step: Step) -> None:
    checkpoint(folder, 40)
    with pytest.raises(StageFailed, match="nothing was finished in this allocation"), recorded(folder, step, WORK):
        raise OutOfTime("its time is over")
    assert folder.attempts("recalibration", 7, None).attempts[-1].code == 1
    assert (folder.verdicts / "recalibration.7").read_text() == "1\n"


@pytest.mark.parametrize("stop", [Elsewhere("n2 went away"), Stopped("stopped by SIGTERM")])
def test_a_node_left_or_a_preemption_is_no_failure(folder: JobsFolder, step: Step, stop: Stopped) -> None:
    with pytest.raises(type(stop)), recorded(folder, step, WORK):
        raise stop
    assert (folder.verdicts / "recalibration.7").read_text() == "75\n"


def test_bad_input_and_unforeseen_errors_are_written_down(folder: JobsFolder, step: Step) -> None:
    for error, code in ((RecipeError("no such\nfield"), 2), (ZeroDivisionError("oh"), 1)):
        with pytest.raises(type(error)), recorded(folder, step, WORK):
            raise error
        last = folder.attempts("recalibration", 7, None).attempts[-1]
        assert (last.code, last.message) == (code, " ".join(str(error).split()))


def test_restarts_without_progress_end_the_job() -> None:
    def after(*reached: int) -> Attempts:
        return Attempts(part="p", job_id=7, index=None, attempts=tuple(map(attempt, reached)))

    for fine in ((0,), (0, 0), (0, 10, 20), (0, 0, 10, 10), (10, 10, 20)):
        refuse_endless(after(*fine), WORK)
    with pytest.raises(StageFailed, match="2 allocations in a row brought nothing"):
        refuse_endless(after(0, 10, 10, 10), WORK)


def facts(state: str = "IDLE", started: str = "2020-01-01T00:00:00") -> dict[str, str]:
    return {"State": state, "SlurmdStartTime": started, "BootTime": "2020-01-01T00:00:00"}


@pytest.mark.parametrize(
    ("second", "known", "excluded"),
    [
        (facts(), {"n1", "n2", "n3"}, None),
        (facts("DOWN*"), {"n1", "n3", "n4"}, "n2"),
        (facts("IDLE", "2100-01-01T00:00:00"), {"n1", "n2", "n3"}, "n2"),  # it has come back since
        (facts("DOWN"), {"n1"}, ""),  # without it too few would be left
    ],
)
def test_a_node_under_which_the_job_died_is_left_out(
    second: dict[str, str], known: set[str], excluded: str | None,
    folder: JobsFolder, step: Step, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(nodes.client, "node_facts", lambda names: {"n1": facts(), "n2": second})
    monkeypatch.setattr(nodes.client, "nodes_of_partition", lambda partition: known)
    died = Attempts(part="recalibration", job_id=7, index=None, attempts=(attempt(0), attempt(0)))
    folder.write_attempts(died)
    if excluded:
        with pytest.raises(Elsewhere, match="n2 failed under the last allocation"):
            avoid_bad_nodes(folder, step, WORK)
    else:
        avoid_bad_nodes(folder, step, WORK)
    file = folder.excluded("recalibration")
    assert (file.read_text().strip() if file.is_file() else None) == excluded


def test_a_node_is_no_suspect_where_the_job_ended_by_itself(
    folder: JobsFolder, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes.client, "node_facts", lambda names: pytest.fail("SLURM was asked"))
    ended = Attempts(part="recalibration", job_id=7, index=None, attempts=(attempt(0, ended=True), attempt(0)))
    folder.write_attempts(ended)
    avoid_bad_nodes(folder, step, WORK)


def test_excluded_nodes_gather_until_too_few_are_left(folder: JobsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes.client, "nodes_of_partition", lambda partition: {f"n{number}" for number in range(1, 6)})
    folder.excluded("p").write_text("n9\n")  # the profile's
    few = {"nodes_min": 2, "always": ("n9",)}
    assert nodes.exclude(folder, "p", ["n1"], **few) == ("n9", "n1")
    assert nodes.exclude(folder, "p", ["n2", "n3"], **few) == ("n9", "n1", "n2", "n3")
    assert nodes.exclude(folder, "p", ["n4"], **few) == ("n9", "n4")
    assert folder.excluded("p").read_text() == "n[4,9]\n"
    assert nodes.exclude(folder, "p", ["n1", "n2", "n3", "n4"], **few) == ("n9",)


def test_a_job_that_waits_may_use_nodes_again_where_too_few_others_are_up(
    folder: JobsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(nodes.client, "exclude_nodes", lambda job_id, names: told.append((job_id, names)))
    asked = Resources(nodes=3, nodes_min=2, exclude="n9")
    folder.excluded("p").write_text("n[2,9]\n")
    monkeypatch.setattr(nodes.client, "nodes_of_partition", lambda partition: {"n1", "n2", "n3", "n9"})
    assert nodes.readmit(folder, "p", 7, asked) == () and not told
    monkeypatch.setattr(nodes.client, "nodes_of_partition", lambda partition: {"n2", "n3", "n9"})
    assert nodes.readmit(folder, "p", 7, asked) == ("n2",)
    assert told == [(7, "n9")] and folder.excluded("p").read_text() == "n9\n"
    assert nodes.readmit(folder, "p", 7, asked) == ()


def test_ranks_on_nodes() -> None:
    assert ranks_of_nodes(6, 4, 4) == (4, 2, 0, 0)
    assert ranks_of_nodes(8, 2, 4) == (4, 4)
    with pytest.raises(ValueError, match="9 ranks on 2 nodes of 4"):
        ranks_of_nodes(9, 2, 4)
    assert [usable_slots(8, degree) for degree in (1, 2, 3, 8, 16)] == [8, 8, 6, 8, 8]
    assert fitting_data_parallel(16, rows=512, slots=24, tensor_parallel=2) == 8  # 12 do not divide 512
    assert fitting_data_parallel(4, rows=512, slots=24, tensor_parallel=2) == 4
    with pytest.raises(ValueError, match="4 tensor-parallel ranks, room for 3"):
        fitting_data_parallel(4, rows=8, slots=3, tensor_parallel=4)


def test_the_recipe_is_fitted_to_the_nodes_that_are_there(write_recipe: Callable[..., Path]) -> None:
    def ranks(slots: int, **training: object) -> int | str:
        recipe = load_recipe(write_recipe(), tuple(f"recalibration.{key}={value}" for key, value in training.items()))
        return fitted(recipe, slots).recalibration.data_parallel

    # The recipe has a batch of 4, micro batches of 2 and TP 2.
    assert ranks(4, data_parallel=2) == ranks(8, data_parallel=2) == 2
    assert ranks(2, data_parallel=2) == 1
    assert ranks(6, data_parallel=4, micro_batch=1) == 2
    assert ranks(2, data_parallel="auto") == "auto"
    with pytest.raises(RecipeError, match=r"surgery.tensor_parallel = 2: the job's nodes have room for 1 processes"):
        ranks(1)


def test_progress_grows_with_what_is_safe(tmp_path: Path) -> None:
    assert (
        stage_named("recalibration").progress(tmp_path)
        == stage_named("data").progress(tmp_path)
        == stage_named("export").progress(tmp_path)
        == 0
    )
    checkpoint(JobsFolder(tmp_path), 40)
    (tmp_path / "recalibration" / "checkpoints" / "step-00000060").mkdir()  # of a save that was killed
    assert stage_named("recalibration").progress(tmp_path / "recalibration") == 40
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "one.json").touch()
    assert stage_named("data").progress(tmp_path) == 1
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "one.json").touch()
    (tmp_path / "units" / "two.answers").write_text("answer")
    assert stage_named("evaluation").progress(tmp_path) == 7


def appears(path: Path, seconds: float) -> None:
    def write() -> None:
        time.sleep(seconds)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")

    threading.Thread(target=write, daemon=True).start()


def test_what_another_node_wrote_is_waited_for(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(patience, "_BETWEEN", 0.05)
    recipe: Recipe = load_recipe(write_recipe())
    export = stage_named("export")
    appears(recipe.folder / "recalibration" / "manifest.json", 0.5)
    began = time.monotonic()
    await_inputs(recipe, export)
    assert 0.3 < time.monotonic() - began < 5
    assert not seen(tmp_path / "never", seconds=0.1) and not seen(tmp_path / "no" / "never", seconds=0.1)


def test_a_check_is_made_again_while_it_may_only_not_see_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(patience, "_BETWEEN", 0.05)

    def check() -> None:
        if not (tmp_path / "piece").exists():
            raise RecipeError("a piece is missing")

    with pytest.raises(RecipeError, match="a piece is missing"):
        patiently(check, RecipeError, seconds=0.2)
    appears(tmp_path / "piece", 0.3)
    patiently(check, RecipeError, seconds=10)


def test_a_missing_file_of_a_checkpoint_is_waited_for_where_other_machines_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert patience.machines() == int(os.environ.get("GROUP_WORLD_SIZE", 1))
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    assert patience.machines() == 3


def test_a_merge_does_what_is_left_of_the_data(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    monkeypatch.setattr(jobs, "_MERGE_PATIENCE", 0.0)
    recipe = load_recipe(write_recipe())
    merge = Work(stage="data", does="merge", part="data-merge", of=1, offset=0, per_node=1, nodes_min=1, barren=3)
    jobs.do(recipe, stage_named("data"), merge, step)
    assert (recipe.folder / "data" / "manifest.json").is_file()
