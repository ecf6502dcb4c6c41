"""Profiles that come with the project, what their recipes ask for, and which ranks go on which node."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.profiles import CLUSTERS, StageProfile, load_profile
from pipeline.cluster.resources import nodes_of_training, resources_of
from pipeline.cluster.spread import fitting_data_parallel, ranks_of_nodes, usable_slots
from pipeline.cluster.stage_jobs import stage_jobs_of
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import load_recipe
from pipeline.stages.order import stages_of
from slurm.profile import Resources

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


@pytest.mark.parametrize("name", sorted(path.stem for path in CLUSTERS.glob("*.yaml")))
def test_a_profile_of_the_project_has_room_for_a_recipe(name: str) -> None:
    profile = load_profile(name)
    assert profile.description
    recipe = load_recipe(RECIPES / "tinystories-656k.yaml")
    jobs = stage_jobs_of(recipe, profile, stages_of(recipe))
    asked = {job.name: resources_of(job, recipe, profile) for job in jobs}
    assert {"data", "data-merge", "surgery", "recalibration", "export", "evaluation", "report"} <= set(asked)
    assert not any(asked[part].gpus for part in ("data", "data-merge", "surgery", "export", "evaluation-merge"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("h10", None, "no clusters/h10.yaml; did you mean h100?"),
        ("mine/none.yaml", None, "--cluster mine/none.yaml: no such file"),
        ("mine.yaml", "stages: {recalibraton: {nodes: 2}}", "did you mean recalibration?"),
        ("mine.yaml", "stages: {data: {pool: cpus}}\npools: {cpu: {}}", "stages.data.pool = 'cpus': pools has cpu"),
        (
            "mine.yaml",
            "stages: {data: {nodes: 2}}\ndefaults: {nodes_min: 3}",
            "nodes_min = 3 is more than nodes = 2",
        ),
        ("mine.yaml", "defaults: {time: soon}", "write a time limit as minutes"),
        ("mine.yaml", "defaults: {sbatch: [--dependency=afterok:1]}", "--dependency is set by the generated scripts"),
        ("mine.yaml", 'environment: ["module load x\\nrm -rf /"]', "control characters"),
        ("mine.yaml", "defaults: {nodes: 2, nodes_min: 3}", "nodes_min = 3 is more than nodes = 2"),
        ("mine.yaml", "- a list", "a cluster profile is a mapping of sections, this is list"),
    ],
)
def test_profiles_that_cannot_be_used(
    name: str, text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(RecipeError) as error:
        load_profile(name)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_stage_counts_more_than_its_pool_and_the_pool_more_than_the_defaults() -> None:
    profile = StageProfile.model_validate(
        {
            "defaults": {"account": "lab", "time": 60},
            "pools": {"gpu": {"partition": "gpu", "gpus": 8, "time": "1-00:00:00"}},
            "stages": {"recalibration": {"pool": "gpu", "nodes": 4, "time": "2-00:00:00"}, "export": {}},
        }
    )
    assert profile.resources("recalibration") == Resources(
        account="lab", partition="gpu", gpus=8, nodes=4, time="2-00:00:00"
    )
    assert profile.resources("export") == profile.resources("report") == Resources(account="lab", time="60")


def test_the_plan_on_a_cluster(drope: Any, tmp_path: Path) -> None:
    result = drope("plan", RECIPES / "llama2-7b.yaml", "--cluster", "h100", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "job data              256 tasks, 64 at once; 1 node x 32 CPUs; partition cpu; time 8:00:00" in result.stdout
    assert "job recalibration     2-4 nodes x 8 GPUs x 96 CPUs; partition gpu; time 1-00:00:00; about" in result.stdout
    plan = json.loads(drope("plan", RECIPES / "llama2-7b.yaml", "--cluster", "h100", "--json", cwd=tmp_path).stdout)
    training = next(job for job in plan["jobs"] if job["part"] == "recalibration")
    assert training["nodes"] == 4 and training["gpus_per_node"] == 8
    assert training["hours"] == pytest.approx(plan["gpu_hours"] / 32)
    assert training["allocations"] == -(-training["hours"] // 24)
    refused = drope("plan", RECIPES / "llama2-7b.yaml", "recalibration.data_parallel=64", "--cluster", "h100")
    assert refused.returncode == 2 and "the cluster profile gives 4 nodes of 8 that are usable = 32" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensor_parallel", "data_parallel", "asked", "nodes"),
    [
        (1, 32, {"nodes": 4, "gpus": 8}, (4, 4)),
        (1, 16, {"nodes": 4, "gpus": 8, "nodes_min": 1}, (2, 1)),  # no more nodes than it needs
        (1, "auto", {"nodes": 4, "gpus": 8, "nodes_min": 2}, (4, 2)),
        (16, 1, {"nodes": 4, "gpus": 8, "nodes_min": 1}, (2, 2)),  # one group takes two nodes
        (3, 4, {"nodes": 2, "gpus": 8}, (2, 2)),  # two groups of three on each
        (2, 2, {"nodes": 2, "processes": 2}, (2, 2)),
    ],
)
def test_nodes_of_a_training(
    tensor_parallel: int, data_parallel: int | str, asked: dict[str, int], nodes: tuple[int, int]
) -> None:
    words = (f"surgery.tensor_parallel={tensor_parallel}", f"recalibration.data_parallel={data_parallel}")
    recipe = load_recipe(
        RECIPES / "tinystories-656k.yaml", (*words, "recalibration.batch=96", "recalibration.micro_batch=1")
    )
    assert nodes_of_training("recalibration", recipe, Resources(**asked)) == nodes


def test_ranks_fill_the_first_nodes_in_whole_groups() -> None:
    assert [usable_slots(8, tp) for tp in (1, 2, 3, 8, 16)] == [8, 8, 6, 8, 8]
    assert ranks_of_nodes(10, 3, 4) == (4, 4, 2) and ranks_of_nodes(4, 3, 4) == (4, 0, 0)
    with pytest.raises(ValueError, match="13 ranks on 3 nodes of 4"):
        ranks_of_nodes(13, 3, 4)


def test_fewer_ranks_share_a_step_evenly() -> None:
    assert fitting_data_parallel(32, rows=512, slots=24, tensor_parallel=1) == 16
    assert fitting_data_parallel(3, rows=6, slots=4, tensor_parallel=2) == 2
    assert fitting_data_parallel(4, rows=64, slots=64, tensor_parallel=1) == 4
    with pytest.raises(ValueError, match="8 tensor-parallel ranks, room for 4"):
        fitting_data_parallel(1, rows=8, slots=4, tensor_parallel=8)
