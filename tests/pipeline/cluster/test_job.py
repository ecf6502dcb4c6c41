"""Inside a job: what ends it, what it goes on without, what it waits for."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.cluster import excluded_nodes
from pipeline.cluster.allocation import job as jobs
from pipeline.cluster.allocation.attempts import recorded, refuse_endless
from pipeline.cluster.allocation.bad_nodes import Elsewhere, avoid_bad_nodes
from pipeline.cluster.allocation.job import await_inputs
from pipeline.cluster.allocation.training import fitted
from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.job_options import JobOptions
from pipeline.cluster.records import Attempt, Attempts
from pipeline.cluster.spread import fitting_data_parallel, ranks_of_nodes, usable_slots
from pipeline.errors import OutOfTime, RecipeError, StageFailed, Stopped
from pipeline.launch import patience
from pipeline.launch.patience import patiently, seen
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runs.manifest import now
from pipeline.stages.order import STAGES, stage_named
from slurm.profile import Resources
from slurm.step import Step

OPTIONS = JobOptions(part="recalibration", per_node=2, nodes_min=2, barren=2)


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
    with pytest.raises(Stopped, match="its time"), recorded(folder, step, OPTIONS):
        checkpoint(folder, 40)
        raise OutOfTime("its time is over")
    (only,) = folder.attempts("recalibration", 7, None).attempts
    assert (only.code, only.message, only.nodes, only.progress) == (75, "its time is over", ("n1", "n2"), 0)
    assert (folder.verdicts / "recalibration.7").read_text() == "75\n"


def test_a_time_limit_in_which_nothing_was_finished_is_a_failure(folder: JobsFolder, step: Step) -> None:
    checkpoint(folder, 40)
    with pytest.raises(StageFailed, match="nothing was finished in this allocation"), recorded(folder, step, OPTIONS):
        raise OutOfTime("its time is over")
    assert folder.attempts("recalibration", 7, None).attempts[-1].code == 1
    assert (folder.verdicts / "recalibration.7").read_text() == "1\n"


@pytest.mark.parametrize("stop", [Elsewhere("n2 went away"), Stopped("stopped by SIGTERM")])
def test_a_node_left_or_a_preemption_is_no_failure(folder: JobsFolder, step: Step, stop: Stopped) -> None:
    with pytest.raises(type(stop)), recorded(folder, step, OPTIONS):
        raise stop
    assert (folder.verdicts / "recalibration.7").read_text() == "75\n"


def test_bad_input_and_unforeseen_errors_are_written_down(folder: JobsFolder, step: Step) -> None:
    for error, code in ((RecipeError("no such\nfield"), 2), (ZeroDivisionError("oh"), 1)):
        with pytest.raises(type(error)), recorded(folder, step, OPTIONS):
            raise error
        last = folder.attempts("recalibration", 7, None).attempts[-1]
        assert (last.code, last.message) == (code, " ".join(str(error).split()))


def test_restarts_without_progress_end_the_job() -> None:
    def after(*reached: int) -> Attempts:
        return Attempts(part="p", job_id=7, index=None, attempts=tuple(map(attempt, reached)))

    for fine in ((0,), (0, 0), (0, 10, 20), (0, 0, 10, 10), (10, 10, 20)):
        refuse_endless(after(*fine), OPTIONS)
    with pytest.raises(StageFailed, match="2 allocations in a row brought nothing"):
        refuse_endless(after(0, 10, 10, 10), OPTIONS)


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
    monkeypatch.setattr(excluded_nodes.client, "node_facts", lambda names: {"n1": facts(), "n2": second})
    monkeypatch.setattr(excluded_nodes.client, "nodes_of_partition", lambda partition: known)
    died = Attempts(part="recalibration", job_id=7, index=None, attempts=(attempt(0), attempt(0)))
    folder.write_attempts(died)
    if excluded:
        with pytest.raises(Elsewhere, match="n2 failed under the last allocation"):
            avoid_bad_nodes(folder, step, OPTIONS)
    else:
        avoid_bad_nodes(folder, step, OPTIONS)
    file = folder.excluded("recalibration")
    assert (file.read_text().strip() if file.is_file() else None) == excluded


def test_a_node_is_no_suspect_where_the_job_ended_by_itself(
    folder: JobsFolder, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excluded_nodes.client, "node_facts", lambda names: pytest.fail("SLURM was asked"))
    ended = Attempts(part="recalibration", job_id=7, index=None, attempts=(attempt(0, ended=True), attempt(0)))
    folder.write_attempts(ended)
    avoid_bad_nodes(folder, step, OPTIONS)


def test_excluded_nodes_gather_until_too_few_are_left(folder: JobsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        excluded_nodes.client, "nodes_of_partition", lambda partition: {f"n{number}" for number in range(1, 6)}
    )
    folder.excluded("p").write_text("n9\n")  # the profile's

    def excluded(*names: str) -> tuple[str, ...]:
        return excluded_nodes.exclude(folder, "p", names, nodes_min=2, always=("n9",))

    assert excluded("n1") == ("n9", "n1")
    assert excluded("n2", "n3") == ("n9", "n1", "n2", "n3")
    assert excluded("n4") == ("n9", "n4")
    assert folder.excluded("p").read_text() == "n[4,9]\n"
    assert excluded("n1", "n2", "n3", "n4") == ("n9",)


def test_a_job_that_waits_may_use_nodes_again_where_too_few_others_are_up(
    folder: JobsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(excluded_nodes.client, "exclude_nodes", lambda job_id, names: said.append((job_id, names)))
    asked = Resources(nodes=3, nodes_min=2, exclude="n9")
    folder.excluded("p").write_text("n[2,9]\n")
    monkeypatch.setattr(excluded_nodes.client, "nodes_of_partition", lambda partition: {"n1", "n2", "n3", "n9"})
    assert excluded_nodes.readmit(folder, "p", 7, asked) == () and not said
    monkeypatch.setattr(excluded_nodes.client, "nodes_of_partition", lambda partition: {"n2", "n3", "n9"})
    assert excluded_nodes.readmit(folder, "p", 7, asked) == ("n2",)
    assert said == [(7, "n9")] and folder.excluded("p").read_text() == "n9\n"
    assert excluded_nodes.readmit(folder, "p", 7, asked) == ()


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
    def progress(stage: str) -> int:
        return stage_named(stage).progress(tmp_path / stage)

    assert [progress(stage.name) for stage in STAGES] == [0] * len(STAGES)
    checkpoint(JobsFolder(tmp_path), 40)
    (tmp_path / "recalibration" / "checkpoints" / "step-00000060").mkdir()  # of a save that was killed
    assert progress("recalibration") == 40
    (tmp_path / "data" / "pieces").mkdir(parents=True)
    (tmp_path / "data" / "pieces" / "one.json").touch()
    assert progress("data") == 1
    (tmp_path / "evaluation" / "units").mkdir(parents=True)
    (tmp_path / "evaluation" / "units" / "one.json").touch()
    (tmp_path / "evaluation" / "units" / "two.answers").write_text("answer")
    assert progress("evaluation") == 7


class Clock:
    """Time that passes only while somebody sleeps; `at` some time a file comes to be seen."""

    def __init__(self) -> None:
        self.now, self._coming = 0.0, {}

    def at(self, seconds: float, path: Path) -> None:
        self._coming[path] = seconds

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for path, when in self._coming.items():
            if when <= self.now and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(patience, "time", made)
    return made


def test_what_another_node_wrote_is_waited_for(write_recipe: Callable[..., Path], clock: Clock, tmp_path: Path) -> None:
    recipe: Recipe = load_recipe(write_recipe())
    clock.at(30, recipe.folder / "recalibration" / "manifest.json")
    await_inputs(recipe, stage_named("export"))
    assert clock.now == 30  # and not for the control's, which the recipe has not
    for path in (tmp_path / "never", tmp_path / "no" / "never"):
        began = clock.now
        assert not seen(path, seconds=60)
        assert 60 <= clock.now - began < 65


def test_a_check_is_made_again_while_it_may_only_not_see_yet(clock: Clock, tmp_path: Path) -> None:
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if not (tmp_path / "piece").exists():
            raise RecipeError("a piece is missing")

    with pytest.raises(RecipeError, match="a piece is missing"):
        patiently(check, RecipeError, seconds=10)
    assert clock.now > 10 and checks > 5
    clock.at(clock.now + 20, tmp_path / "piece")
    patiently(check, RecipeError, seconds=40)


def test_a_missing_file_of_a_checkpoint_is_waited_for_where_other_machines_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    assert patience.machines() == 1
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    assert patience.machines() == 3


def test_a_merge_does_what_is_left_of_the_data(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    monkeypatch.setattr(jobs, "_MERGE_PATIENCE", 0.0)
    recipe = load_recipe(write_recipe())
    jobs.do(recipe, stage_named("data"), JobOptions(part="data-merge"), step)
    assert (recipe.folder / "data" / "manifest.json").is_file()
