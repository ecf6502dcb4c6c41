"""SLURM's commands on a real SLURM: refusals in its own words, states, answers that get lost."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm import client
from slurm.client import JobState
from slurm.errors import SlurmError, SlurmUnreachable
from slurm.job import Job
from slurm.profile import ClusterProfile, Resources
from slurm.script import script_text
from tests.slurm.trial_cluster import TrialCluster

MakeJob = Callable[..., Job]


@pytest.fixture(autouse=True)
def _speak_with_the_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cluster" in request.fixturenames:
        monkeypatch.setenv("SLURM_CONF", request.getfixturevalue("cluster").environment["SLURM_CONF"])


def written(job: Job) -> Path:
    script = job.folder / "script.sh"
    script.write_text(script_text(job, ClusterProfile()))
    return script


def active(job: Job) -> list[JobState]:
    return [state for state in client.listed(lambda name: name == job.name) if state.is_active]


def named(states: list[JobState]) -> dict[int | None, str]:
    return {state.task: state.state for state in states}


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"partition": "fastest"}, "SLURM would refuse the job part: .*invalid partition specified"),
        (
            {"partition": "cpu", "time": "2-00:00:00"},
            "the job part asks for time: 2-00:00:00 .* partition cpu allows 1 day, 0:00:00 at most",
        ),
        ({"partition": "main", "gpus": 8}, "SLURM would refuse the job part: .*(GRES|gres|TRES|node configuration)"),
        (
            {"partition": "main", "nodes": 9},
            "SLURM would refuse the job part: .*(Node count specification invalid|more nodes|node configuration)",
        ),
    ],
)
def test_what_slurm_would_refuse_is_said_in_its_words(
    resources: dict, words: str, make_job: MakeJob, cluster: TrialCluster
) -> None:
    job = make_job(resources=Resources(**resources))
    with pytest.raises(SlurmError, match=words) as error:
        client.check(written(job), "part", job.resources)
    assert "\n" not in str(error.value)
    assert not active(job)


def test_tasks_of_an_array_one_by_one(make_job: MakeJob, cluster: TrialCluster) -> None:
    job = make_job(resources=Resources(partition="main", at_once=2), array=(0, 1, 2, 5), command=("sleep", "60"))
    job_id = client.submit(written(job), accepted=lambda: None)
    cluster.wait(lambda: "RUNNING" in named(client.listed(lambda name: name == job.name)).values(), "it runs")
    assert {state.task for state in active(job)} == {0, 1, 2, 5}
    client.cancel([f"{job_id}_5"])
    # SLURM forgets at once a task that had not begun.
    cluster.wait(lambda: {state.task for state in active(job)} == {0, 1, 2}, "task 5 is cancelled")
    client.cancel([str(job_id)])
    cluster.wait(lambda: not active(job), "all are")
    states = client.states_of([job_id], client.listed(lambda name: name == job.name))[job_id]
    assert {0, 1} <= {state.task for state in states} and all(state.has_failed for state in states)
    client.cancel([str(job_id)])  # once more is no error
    assert client.accounted(job_id) == []  # there is no accounting here, which is no error either


def test_a_job_whose_acceptance_was_not_answered_is_not_submitted_twice(
    make_job: MakeJob, cluster: TrialCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An sbatch that submits, and then says what sbatch says when the controller's answer does not come."""
    shim = tmp_path / "bin" / "sbatch"
    shim.parent.mkdir()
    real = shutil.which("sbatch")
    lost = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    shim.write_text(f'#!/bin/bash\n{real} "$@" >/dev/null\necho "{lost}" >&2\nexit 1\n')
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    job = make_job(command=("sleep", "60"))

    def accepted() -> int | None:
        return next((state.job_id for state in client.listed(lambda name: name == job.name)), None)

    number = client.submit(written(job), accepted=accepted)
    assert [state.job_id for state in client.listed(lambda name: name == job.name)] == [number]


def test_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match=r"no sbatch on the path: .* of the cluster; go there$"):
        client.require_sbatch("go there")
    with pytest.raises(SlurmUnreachable, match="no squeue on this machine's path"):
        client.listed(lambda name: True)
    assert client.remembered(1) == client.accounted(1) == []
    assert client.setting("MaxArraySize", "1001") == "1001"
    assert client.nodes_of_partition("main") == set() and client.node_facts(["node1"]) == {}


def test_settings_and_nodes(cluster: TrialCluster) -> None:
    assert client.setting("MaxArraySize", "1001") == "64"
    assert client.nodes_of_partition("main") == {"node1", "node2", "node3"}
    cluster.command("scontrol", "update", "nodename=node2", "state=drain", "reason=test")
    assert client.nodes_of_partition(None) == {"node1", "node3"}
    facts = client.node_facts(["node1", "node2"])
    assert client.is_out(facts["node2"]["State"]) and not client.is_out(facts["node1"]["State"])
    cluster.command("scontrol", "update", "nodename=node2", "state=resume")


@pytest.mark.parametrize(
    ("state", "is_out"),
    [
        ("idle", False), ("mixed-", False), ("allocated", False), ("IDLE+CLOUD", False), ("idle~", False),
        ("down*", True), ("idle*", True), ("drained", True), ("IDLE+DRAIN", True), ("DOWN+NOT_RESPONDING", True),
        ("MIXED+DRAIN", True),
    ],
)  # fmt: skip
def test_states_of_nodes(state: str, is_out: bool) -> None:
    assert client.is_out(state) is is_out


@pytest.mark.parametrize(("text", "tasks"), [("0-3,7%2", [0, 1, 2, 3, 7]), ("5", [5]), ("", []), ("N/A", [])])
def test_task_lists_of_slurm(text: str, tasks: list[int]) -> None:
    assert client.tasks_in(text) == tasks
