"""Cluster profiles: what a job gets from where, and what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from slurm.errors import SlurmError
from slurm.profile import ClusterProfile, PoolResources, Resources, seconds_of


def test_a_job_counts_more_than_its_pool_and_the_pool_more_than_the_defaults() -> None:
    profile = ClusterProfile.model_validate(
        {
            "defaults": {"account": "lab", "time": 60, "cpus": 4},
            "pools": {"gpu": {"partition": "gpu", "gpus": 8, "cpus": 96, "time": "1-00:00:00"}},
        }
    )
    own = PoolResources.model_validate({"pool": "gpu", "nodes": 4, "time": "2-00:00:00"})
    resources = profile.resolved(own)
    assert (resources.account, resources.partition, resources.gpus, resources.cpus) == ("lab", "gpu", 8, 96)
    assert (resources.nodes, resources.time) == (4, "2-00:00:00")
    assert profile.resolved(PoolResources()) == Resources(account="lab", time="60", cpus=4)


def test_what_does_not_fit_together_is_refused() -> None:
    profile = ClusterProfile.model_validate({"pools": {"cpu": {}}, "defaults": {"nodes_min": 3}})
    with pytest.raises(SlurmError, match=r"^pool = 'fast': pools has cpu$"):
        profile.resolved(PoolResources(pool="fast"))
    with pytest.raises(ValidationError, match="nodes_min = 3 is more than nodes = 2"):
        profile.resolved(PoolResources(nodes=2))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"defaults": {"time": "1 day"}}, "write a time limit as minutes"),
        ({"defaults": {"memory": "64 gigabytes"}}, "write memory as 64G"),
        ({"defaults": {"partition": "a\n#SBATCH --uid=0"}}, "must be one line that is not empty"),
        ({"defaults": {"account": ""}}, "must be one line that is not empty"),
        ({"defaults": {"nodes": 0}}, "greater than or equal to 1"),
        ({"defaults": {"sbatch": ["--dependency=afterok:1"]}}, "--dependency is set by the generated scripts"),
        ({"defaults": {"sbatch": ["licenses=x"]}}, "as on sbatch's command line"),
        ({"defaults": {"nodes": 2, "nodes_min": 3}}, "nodes_min = 3 is more than nodes = 2"),
        ({"environment": ["module load cuda\nrm -rf x"]}, "must be one line that is not empty"),
        ({"restarts": {"warning_seconds": 1}}, "greater than or equal to 10"),
        ({"partitions": {}}, "Extra inputs"),
    ],
)
def test_what_cannot_be_meant_is_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClusterProfile.model_validate(raw)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("2:00:00", 7200),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("2-00:00:05", 172_805),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit: str, seconds: int) -> None:
    assert seconds_of(limit) == seconds


def test_a_bare_number_is_minutes() -> None:
    assert Resources.model_validate({"time": 90}).time == "90"
