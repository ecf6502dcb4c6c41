"""Whole runs on a real SLURM of three nodes: what a user sees, and what happens to the jobs."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pipeline.recalibration.metrics import MEASURED, read_metrics
from tests.pipeline.cluster.conftest import SECONDS, ClusterRun

pytestmark = pytest.mark.slow
MakeRun = Callable[..., ClusterRun]
_CALM: dict[str, list[Any]] = {}


def numbers(run: ClusterRun) -> list[dict[str, Any]]:
    """What the training computed, without what clocks decide."""
    lines = read_metrics(run.path / "recalibration")
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


@pytest.fixture
def undisturbed(cluster_run: MakeRun, long_training: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers of the long training when nothing happens to it."""
    if not _CALM:
        calm = cluster_run("calm", training=long_training)
        calm.submit("--until", "recalibration")
        calm.wait("recalibration", "complete")
        _CALM["numbers"] = numbers(calm)
        lines = read_metrics(calm.path / "recalibration")
        _CALM["seconds"] = [line["step_seconds"] for line in lines if "step_seconds" in line]
    return _CALM["numbers"]


@pytest.fixture
def steps_of_a_while(undisturbed: list[dict[str, Any]]) -> int:
    """Steps that take this machine about a minute and a half."""
    return round(90 / median(_CALM["seconds"]))


def attempts(run: ClusterRun, part: str = "recalibration") -> list[dict[str, Any]]:
    result = [json.loads(path.read_text())["attempts"] for path in (run.path / "jobs" / "attempts").glob(f"{part}.*")]
    return [attempt for of_job in result for attempt in of_job]


def test_the_whole_pipeline_by_one_command(cluster_run: MakeRun) -> None:
    run = cluster_run()
    said = run.submit()
    assert re.search(r"data +job \d+, 4 tasks \(0-3\)", said)
    again = run.submit()  # at once: everything is on its way
    assert "on its way already" in again and not re.search(r"job \d+, after|job \d+, \d tasks", again), again
    run.wait("report", "complete")
    shown = run.status()
    assert {stage["state"] for stage in shown.values()} == {"complete"}
    assert (run.path / "report" / "report.html").is_file()
    (event,) = [line for line in events(run) if line["event"] == "started"]
    assert [machine.split(":")[0] for machine in event["machines"]] == ["node1", "node2"]
    assert "complete, not submitted again" in run.submit()
    assert len(run.cluster.command("scontrol", "show", "job", "-o").splitlines()) >= 8
    log = run.drope("logs", run.name, "recalibration")
    assert "recalibration" in log and "done in" in log
    assert "DeepSpeed" in run.drope("logs", run.name, "recalibration", "--node", "node2")
    assert "task 2 of 4 is done" in run.drope("logs", run.name, "data", "--task", "2")
    assert run.drope("cancel", run.name) == "nothing waits or runs\n"


def events(run: ClusterRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "recalibration" / "events.jsonl").read_text().splitlines()]


def test_nodes_that_die_are_left_out_and_the_losses_are_the_same(
    cluster_run: MakeRun, long_training: dict[str, Any], undisturbed: list[dict[str, Any]]
) -> None:
    """The second node of the job, which the first one notices at once; then the first one, which SLURM notices."""
    run = cluster_run("killed", training=long_training)
    run.submit("--until", "recalibration")
    run.wait_for_step(60)
    run.cluster.kill_node("node2")
    run.cluster.wait(lambda: len(attempts(run)) == 2, "the job goes on")
    excluded = run.path / "jobs" / "excluded-recalibration"
    assert excluded.read_text() == "node2\n"
    run.cluster.start_node("node2")
    run.wait_for_step(160)
    run.cluster.kill_node("node1")
    run.cluster.wait(lambda: run.state("recalibration") == "waiting", "SLURM notices")
    assert "not on node2" in run.status()["recalibration"]["detail"]
    said = run.submit("--until", "recalibration")  # of three nodes one is gone, and one excluded
    assert "on its way already" in said
    run.wait("recalibration", "complete")
    assert numbers(run) == undisturbed
    first, second, third = attempts(run)
    assert first["nodes"] == ["node1", "node2"] and "node2 went away" in first["message"]
    assert second["nodes"] == ["node1", "node3"] and second["ended"] is None  # it could not say anything any more
    assert third["nodes"] == ["node2", "node3"]
    assert run.status()["recalibration"]["restarts"] == 2


@pytest.mark.long
def test_fewer_nodes_than_before(cluster_run: MakeRun, long_training: dict[str, Any]) -> None:
    profile = {"stages": {"recalibration": {"nodes": 3, "nodes_min": 1}}}
    training = long_training | {"data_parallel": "auto", "batch": 12, "tokens": 150 * 12 * 32, "micro_batch": 2}
    run = cluster_run("fewer", profile, training=training)
    run.submit("--until", "recalibration")
    run.wait_for_step(60)
    run.cluster.kill_node("node3")
    run.wait("recalibration", "complete")
    sizes = [len(event["machines"]) for event in events(run) if event["event"] == "started"]
    assert sizes == [3, 2]
    assert read_metrics(run.path / "recalibration")[-1]["step"] == 150


def test_a_time_limit_shorter_than_the_run(
    cluster_run: MakeRun, long_training: dict[str, Any], steps_of_a_while: int
) -> None:
    # SLURM looks twice a minute, and half a minute ahead: the warning comes 50 to 80 seconds after the begin.
    profile = {"restarts": {"warning_seconds": 40}, "stages": {"recalibration": {"time": 2}}}
    run = cluster_run("short", profile, training=long_training | {"tokens": steps_of_a_while * 4 * 32})
    run.submit("--until", "recalibration")
    over = lambda: run.state("recalibration") not in ("running", "waiting")  # noqa: E731
    run.cluster.wait(lambda: over() or len(attempts(run)) >= 4, "it is over, or requeued often enough", SECONDS)
    if not over():  # the machine has become slower since its speed was taken
        job = run.cluster.command("squeue", "-h", "-o", "%A").split()[0]
        run.cluster.command("scontrol", "update", f"jobid={job}", "TimeLimit=60")
    shown = run.wait("recalibration", "complete", seconds=2 * SECONDS)
    result = attempts(run)
    assert len(result) >= 2 and [attempt["code"] for attempt in result] == [75] * (len(result) - 1) + [0]
    assert [attempt["restarts"] for attempt in result] == [*range(len(result))]
    assert shown["restarts"] == len(result) - 1
    assert [line["step"] for line in numbers(run)] == [*range(steps_of_a_while + 1)]


def test_a_job_that_fails_takes_with_it_what_depends_on_it(cluster_run: MakeRun) -> None:
    run = cluster_run("failing", {"drope": "ls"})
    run.submit()
    shown = run.wait("surgery", "failed")
    assert any("unrecognized option '--part'" in line for line in shown["log_lines"])
    run.cluster.wait(lambda: not run.cluster.command("squeue", "-h"), "what depends on it ends too")
    shown = run.status()
    assert {shown[stage]["state"] for stage in ("recalibration", "export", "evaluation", "report")} == {"cancelled"}
    assert "what it waited for has failed" in run.drope_status()


def test_preemption_by_a_higher_partition_and_being_cancelled(
    cluster_run: MakeRun, long_training: dict[str, Any], undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = cluster_run("preempted", {"stages": {"recalibration": {"partition": "low"}}}, training=long_training)
    run.submit("--until", "export")
    run.wait_for_step(60)
    script = tmp_path / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 5\n")
    run.cluster.command("sbatch", "-p", "high", "-N3", "--exclusive", "-o", "/dev/null", str(script))
    run.wait_for_step(160)
    assert [attempt["restarts"] for attempt in attempts(run)] == [0, 1]
    assert "cancelled:" in run.drope("cancel", "preempted")
    run.cluster.wait(lambda: not run.cluster.command("squeue", "-h"), "all jobs end, and none comes back")
    shown = run.status()
    assert (shown["recalibration"]["state"], shown["export"]["state"]) == ("cancelled", "cancelled")
    run.submit("--until", "recalibration")
    run.wait("recalibration", "complete")
    assert numbers(run) == undisturbed
    assert [event["step"] for event in events(run) if event["event"] == "started"][2] >= 160


def test_a_cancelled_task_is_named_and_it_alone_is_done_again(cluster_run: MakeRun) -> None:
    run = cluster_run(profile={"stages": {"data": {"tasks": 6, "at_once": 1}}})
    said = run.submit("--until", "surgery")
    array = re.search(r"data +job (\d+)", said)[1]
    run.cluster.command("scancel", f"{array}_4")
    run.cluster.wait(lambda: run.state("data") in ("cancelled", "failed"), "the cancelled task is seen")
    run.cluster.wait(lambda: not run.cluster.command("squeue", "-h"), "nothing waits for it")
    shown = run.status()["data"]
    assert shown["tasks"] == {"of": 6, "done": 5, "running": 0, "waiting": 0, "failed": [4]}
    assert "5 of 6 tasks done, 1 failed (4)" in run.drope_status()
    assert re.search(r"data +job \d+, 1 tasks \(4\)", run.submit("--until", "surgery"))
    run.wait("data", "complete")
    assert run.status()["data"]["tasks"]["failed"] == []


@pytest.mark.long
def test_a_hundred_tasks_in_two_arrays(cluster_run: MakeRun, documents: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hundred"
    folder.mkdir()
    lines = documents.read_text().splitlines(keepends=True)
    for number in range(100):
        (folder / f"{number:03}.jsonl").write_text("".join(lines[number::100]))
    run = cluster_run(
        profile={"stages": {"data": {"tasks": 100, "at_once": 4}}}, data={"sources": [{"path": f"{folder}/*.jsonl"}]}
    )
    began = time.monotonic()
    said = run.submit("--until", "data")
    assert "64 tasks (0-63)" in said and "36 tasks (64-99)" in said  # MaxArraySize is 64 there
    run.wait("data", "complete")
    assert run.status()["data"]["tasks"] == {"of": 100, "done": 100, "running": 0, "waiting": 0, "failed": []}
    assert len(attempts(run, "data")) == 100
    print(f"100 tasks in {time.monotonic() - began:.0f} s")
