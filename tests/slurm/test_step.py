"""What a process knows of its job."""

import pytest

from slurm.errors import SlurmError
from slurm.job import ranges
from slurm.step import Step, folded, node_names

ENVIRONMENT = {
    "SLURM_JOB_ID": "4712",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NODELIST": "gpu[08-10,12]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.8",
}


def test_a_node_of_a_job() -> None:
    step = Step.from_environment(ENVIRONMENT)
    assert (step.nodes, step.head, step.node) == (("gpu08", "gpu09", "gpu10", "gpu12"), "gpu08", "gpu09")
    assert (step.label, step.restarts, step.task) == ("4712", 0, None)


def test_a_task_of_an_array() -> None:
    of_task = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "12", "SLURM_RESTART_COUNT": "2"}
    step = Step.from_environment(ENVIRONMENT | of_task)
    assert (step.job_id, step.own_id, step.task, step.label, step.restarts) == (4700, 4712, 12, "4700_12", 2)


def test_ports_follow_from_the_job_and_differ() -> None:
    first, again = Step.from_environment(ENVIRONMENT), Step.from_environment(ENVIRONMENT)
    assert first.ports == again.ports and len(set(first.ports)) == 16
    others = [Step.from_environment(ENVIRONMENT | {"SLURM_JOB_ID": str(4713 + number)}) for number in range(200)]
    assert all(20_000 <= port < 32_768 for step in others for port in step.ports)
    assert len({step.ports[0] for step in others}) == 200
    assert Step.from_environment(ENVIRONMENT | {"SLURM_RESTART_COUNT": "1"}).ports[0] != first.ports[0]


def test_outside_of_a_job() -> None:
    with pytest.raises(SlurmError, match="not in a job step of SLURM: 'SLURM_JOB_ID'; this command is what srun runs"):
        Step.from_environment({})


def test_lists_of_nodes_and_tasks() -> None:
    assert node_names("n[1-2,4],login1,a[08-10]") == ("n1", "n2", "n4", "login1", "a08", "a09", "a10")
    assert folded(("n3", "n1", "n2")) == "n[1-3]"
    assert ranges((7, 0, 1, 2, 9, 10)) == "0-2,7,9-10"
    assert ranges(()) == ""
