"""A run's status out of its three sources, none of which is trusted alone."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.folder import JobsFolder, find_run
from pipeline.cluster.recipe_copies import recipe_of, write_copy
from pipeline.cluster.records import Attempt, Attempts, JobNames, Submitted
from pipeline.cluster.stage_jobs import Does
from pipeline.cluster.status import knowledge, training_status
from pipeline.cluster.status.job_status import Verdict, judge
from pipeline.cluster.status.log_text import follow, last_lines
from pipeline.cluster.status.logs import log_of
from pipeline.cluster.status.run_status import status_of
from pipeline.cluster.status.text import as_text
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import load_recipe, write_recipe
from slurm.client import JobState, SlurmUnreachable

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
BEGUN = Attempt(restarts=0, nodes=("n1", "n2"), started=NOW, progress=0)
WELL = BEGUN.model_copy(update={"ended": NOW, "code": 0})
BADLY = BEGUN.model_copy(update={"ended": NOW, "code": 1, "message": "rank 3 on n2 failed: ValueError"})
STOPPED = BEGUN.model_copy(update={"ended": NOW, "code": 75, "message": "stopped after step 40"})


def slurm(state: str, reason: str = "", nodes: str = "") -> JobState:
    return JobState(7, None, "run.part.label", state, reason, nodes)


@pytest.mark.parametrize(
    ("said", "attempt", "reachable", "state", "detail"),
    [
        (slurm("RUNNING"), BEGUN, True, "running", ""),
        (slurm("PENDING", "Resources"), None, True, "waiting", "Resources"),
        (slurm("PENDING", "BeginTime"), STOPPED, True, "waiting", "BeginTime; before: stopped after step 40"),
        (slurm("PENDING", "DependencyNeverSatisfied"), None, True, "cancelled", "what it waits for has failed"),
        (slurm("COMPLETED"), WELL, True, "complete", ""),
        (slurm("FAILED"), BADLY, True, "failed", "failed: rank 3 on n2 failed: ValueError"),
        (slurm("TIMEOUT"), BEGUN, True, "failed", "ended by its time limit"),
        (slurm("NODE_FAIL", nodes="n2"), BEGUN, True, "failed", "its node failed on n2"),
        (slurm("OUT_OF_MEMORY", nodes="n1"), BEGUN, True, "failed", "out of memory on n1"),
        (slurm("CANCELLED"), BEGUN, True, "cancelled", "cancelled"),
        (slurm("SOMETHING_NEW"), BEGUN, True, "failed", "ended by SLURM as SOMETHING_NEW"),
        # SLURM has forgotten the job, or nobody can ask it.
        (None, WELL, True, "complete", ""),
        (None, BADLY, True, "failed", "rank 3 on n2 failed: ValueError"),
        (None, BEGUN, True, "lost", "SLURM no longer knows the job, which began on n1, n2 and did not end well"),
        (None, None, True, "lost", "SLURM no longer knows the job, and it never began"),
        (None, BEGUN, False, "running", ""),
        (None, None, False, "waiting", "not begun"),
        (None, STOPPED, False, "waiting", "stopped after step 40"),
    ],
)
def test_a_job(said: JobState | None, attempt: Attempt | None, reachable: bool, state: str, detail: str) -> None:
    assert judge(said, attempt, reachable=reachable) == Verdict(state, detail)


@pytest.fixture
def run(write_recipe: Callable[..., Path], tmp_path: Path) -> JobsFolder:
    """A run of which jobs were submitted, whose controller has forgotten them."""
    recipe = load_recipe(write_recipe())
    folder = JobsFolder(recipe.folder)
    folder.make()
    write_copy(recipe, folder)
    return folder


def submitted(folder: JobsFolder, part: str, job_id: int, tasks: tuple[int, ...] = (), offset: int = 0) -> Submitted:
    stage, _, merge = part.partition("-")
    does: Does = "tasks" if tasks else ("merge" if merge else "all")
    name = JobNames("tiny", folder.label).write(part, offset)
    job = Submitted(
        time=NOW, part=part, stage=stage, does=does, job_id=job_id, name=name, after="", tasks=tasks, offset=offset,
        of=6, log=str(folder.logs / part),
    )  # fmt: skip
    folder.add(job)
    return job


def of_slurm(monkeypatch: pytest.MonkeyPatch, states: list[JobState]) -> None:
    monkeypatch.setattr(knowledge.client, "listed", lambda names: [state for state in states if names(state.name)])
    remembered = lambda number: [state for state in states if state.job_id == number]  # noqa: E731
    monkeypatch.setattr(knowledge.client, "remembered", remembered)
    monkeypatch.setattr(knowledge.client, "accounted", lambda number: [])


def test_tasks_that_failed_and_were_done_in_a_later_array_no_longer_count(
    run: JobsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submitted(run, "data", 10, (0, 1, 2, 3, 4, 5))
    submitted(run, "data-merge", 11)
    again = submitted(run, "data", 12, (4,))
    submitted(run, "data-merge", 13)
    states = [JobState(10, task, first.name, "FAILED" if task == 4 else "COMPLETED") for task in range(6)]
    merge = JobNames("tiny", run.label).write("data-merge")
    states += [JobState(11, None, merge, "CANCELLED", "Dependency"), JobState(13, None, merge, "PENDING", "Dependency")]
    of_slurm(monkeypatch, [*states, JobState(12, 4, again.name, "RUNNING", nodes="n3")])
    data = status_of(run.run).stages[0]
    assert (data.state, data.nodes) == ("running", "n3") and data.tasks.failed == ()
    assert (data.tasks.done, data.tasks.running) == (5, 1)
    of_slurm(monkeypatch, [*states, JobState(12, 4, again.name, "FAILED")])
    data = status_of(run.run).stages[0]
    assert (data.state, data.tasks.failed) == ("failed", (4,))
    of_slurm(monkeypatch, [*states, JobState(12, 4, again.name, "COMPLETED")])
    assert status_of(run.run).stages[0].state == "waiting"  # for the merge
    done = [*states[:-1], JobState(13, None, merge, "COMPLETED"), JobState(12, 4, again.name, "COMPLETED")]
    of_slurm(monkeypatch, done)
    data = status_of(run.run).stages[0]
    assert (data.state, data.detail) == ("lost", "its jobs ended well, and no manifest is there (yet)")


def test_a_task_that_was_cancelled_while_it_waited(run: JobsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submitted(run, "data", 10, (0, 1, 2))
    of_slurm(monkeypatch, [JobState(10, task, job.name, "COMPLETED") for task in (0, 1)])
    data = status_of(run.run).stages[0]
    assert (data.state, data.detail, data.tasks.failed) == ("cancelled", "cancelled while it waited", (2,))


def test_a_number_that_slurm_gave_to_another_job(run: JobsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(run, "surgery", 10)
    of_slurm(monkeypatch, [JobState(10, None, "somebody.elses.job", "RUNNING")])
    assert status_of(run.run).stages[1].state == "lost"


def test_the_reason_of_a_failure_with_the_end_of_its_log(run: JobsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submitted(run, "surgery", 10)
    of_slurm(monkeypatch, [JobState(10, None, job.name, "FAILED")])
    run.write_attempts(Attempts(part="surgery", job_id=10, index=None, attempts=(BADLY,)))
    job.log_file(None).write_text("line 1\nreading:  10%\rreading: 100%\n\ndrope: it is wrong\n")
    surgery = status_of(run.run).stages[1]
    assert surgery.detail == "failed: rank 3 on n2 failed: ValueError"
    assert surgery.log_lines == ("line 1", "reading: 100%", "drope: it is wrong")
    text = as_text(status_of(run.run))
    assert "| drope: it is wrong" in text and "surgery        failed         job 10; failed: rank 3" in text
    assert log_of(run.run, None, None, None) == job.log_file(None)


def test_without_slurm_the_run_speaks_for_itself(run: JobsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(run, "recalibration", 10)

    def absent(names: object) -> None:
        raise SlurmUnreachable("no squeue on this machine's path")

    monkeypatch.setattr(knowledge.client, "listed", absent)
    run.write_attempts(Attempts(part="recalibration", job_id=10, index=None, attempts=(BEGUN,)))
    result = status_of(run.run)
    assert result.stages[2].state == "running" and "SLURM could not be asked" in as_text(result)
    assert not result.is_settled


def test_where_a_training_stands(tmp_path: Path) -> None:
    assert training_status.training_status(tmp_path) is None
    lines = [
        {"step": 0, "validation_loss": 3.0},
        {"step": 1, "loss": 2.0, "tokens": 128, "step_seconds": 2.0, "tokens_per_second": 64.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "lo')
    result = training_status.training_status(tmp_path)
    assert (result.step, result.tokens, result.loss, result.steps, result.ends) == (1, 128, 2.0, None, None)


def test_when_a_training_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"step": 10, "loss": 2.0, "tokens": 1280, "step_seconds": 3.0, "tokens_per_second": 64.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "job.json").write_text("{}")
    monkeypatch.setattr(training_status, "steps_of", lambda file: 110)
    left = training_status.training_status(tmp_path).ends - datetime.now(UTC)
    assert timedelta(seconds=295) < left <= timedelta(seconds=300)


def test_a_log_is_followed_until_it_is_over(tmp_path: Path) -> None:
    log, over = tmp_path / "log", iter([False, False, True, True])
    log.write_text("one\n")

    def is_over() -> bool:
        if not (now := next(over)):
            with log.open("a") as file:
                file.write("more\n")
        return now

    assert "".join(follow(log, is_over, seconds=0.01)) == "one\nmore\nmore\n"
    assert last_lines(log, 2) == ["more", "more"] and last_lines(tmp_path / "none") == []


def test_logs_that_are_not_there_are_refused_with_those_that_are(run: JobsFolder) -> None:
    with pytest.raises(RecipeError, match=r"tiny: no job of this run was submitted \(drope submit"):
        log_of(run.run, "data", None, None)
    job = submitted(run, "data", 10, (0, 1, 2))
    job.log_file(1).write_text("task 1")
    with pytest.raises(RecipeError, match=r"data.10_2.log: no such log; there are data.10_1.log"):
        log_of(run.run, "data", 2, None)
    with pytest.raises(RecipeError, match="--task 9: data has tasks 0 to 2"):
        log_of(run.run, "data", 9, None)
    with pytest.raises(RecipeError, match="dota: no job of it was submitted; there are data"):
        log_of(run.run, "dota", None, None)
    assert log_of(run.run, "data", 1, None).read_text() == "task 1"


def test_a_run_is_found_by_path_and_by_name(run: JobsFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_run(str(run.run)) == run.run
    monkeypatch.chdir(tmp_path)
    assert find_run("tiny") == Path("runs/tiny")
    with pytest.raises(RecipeError, match="tony: no run in this folder, nor"):
        find_run("tony")


def test_the_secret_of_a_run_is_one_and_is_secret(tmp_path: Path) -> None:
    first, second = JobsFolder(tmp_path), JobsFolder(tmp_path)
    first.make()
    second.make()
    assert first.token == second.token and len(first.token) == 32
    assert os.stat(tmp_path / "jobs" / "id").st_mode & 0o077 == 0


def test_the_newer_recipe_counts(run: JobsFolder, write_recipe: Callable[..., Path]) -> None:
    assert recipe_of(run.run).evaluation.context_factors == (1, 2)
    changed = load_recipe(write_recipe(), ("evaluation.context_factors=[1]",))
    _write(changed, run.run / "recipe.yaml")
    os.utime(run.run / "recipe.yaml", (2e9, 2e9))
    assert recipe_of(run.run).evaluation.context_factors == (1,)


def _write(recipe: Any, path: Path) -> None:
    write_recipe(recipe, path)
