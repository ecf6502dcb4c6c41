"""What a submission comes to, by what is on its way: decided without SLURM, and before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.cluster.allocation import job as allocation
from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.job_options import JobOptions
from pipeline.cluster.profiles import StageProfile
from pipeline.cluster.records import JobNames, Submitted
from pipeline.cluster.stage_jobs import StageJob, stage_jobs_of
from pipeline.cluster.submission.chain import Chain, arrays_of, dependencies, plan_chain, refuse_missing_needs
from pipeline.cluster.submission.queue import Queue, record_of
from pipeline.cluster.submission.request import Request
from pipeline.commands.cluster import job as job_command
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import load_recipe
from pipeline.stages.order import stages_of
from slurm.client import JobState
from tests.pipeline.cluster.conftest import PROFILE

NAMES = JobNames("tiny", "label")
NOTHING = Queue()


@pytest.fixture
def request_of(write_recipe: Callable[..., Path]) -> Callable[..., Request]:
    """A request for some stages of the tiny recipe (none named: all), of which none is complete."""
    recipe = load_recipe(write_recipe(), ("recalibration.data_parallel=1",))
    stages = PROFILE["stages"]
    profile = StageProfile.model_validate(PROFILE | {"stages": stages | {"data": {"pool": "cpu", "tasks": 5}}})

    def make(*stages: str) -> Request:
        every = tuple(stage_jobs_of(recipe, profile, stages_of(recipe)))
        return Request(
            recipe, profile, (), tuple(job for job in every if not stages or job.stage.name in stages), every
        )

    return make


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which tasks have something left to do: at first all."""

    def say(*tasks: int) -> None:
        monkeypatch.setattr(StageJob, "undone_tasks", lambda job, recipe: [task for task in tasks if task < job.tasks])

    say(0, 1, 2, 3, 4)
    return say


def plan(request: Request, queue: Queue, array_size: int = 100) -> Chain:
    return plan_chain(request, JobsFolder(request.recipe.folder), NAMES, queue, array_size)


def accepted(request: Request, part: str, job_id: int, tasks: tuple[int, ...] = (), offset: int = 0) -> Submitted:
    stage_job = next(job for job in request.jobs_of_run if job.name == part)
    folder = JobsFolder(request.recipe.folder)
    return record_of(stage_job, job_id, folder, NAMES, tasks=tasks, offset=offset)


def state(job_id: int, word: str, task: int | None = None) -> JobState:
    return JobState(job_id, task, "", word)


def test_all_stages_once_in_order_and_nothing_is_written(
    request_of: Callable[..., Request], undone: Callable[..., None]
) -> None:
    request = request_of()
    chain = plan(request, NOTHING, array_size=2)
    assert [(script.path.name, script.tasks) for script in chain.scripts] == [
        ("data.sh", [0, 1]),
        ("data-2.sh", [2, 3]),
        ("data-4.sh", [4]),
        ("data-merge.sh", []),
        ("surgery.sh", []),
        ("recalibration.sh", []),
        ("export.sh", []),
        ("evaluation.sh", [0, 1]),
        ("evaluation-merge.sh", []),
        ("report.sh", []),
    ]
    assert (chain.kept, chain.replaced) == ({}, [])
    assert [script.job.name for script in chain.scripts][:2] == ["tiny.data.label", "tiny.data+2.label"]
    assert "--part data --of 5 --offset 2 --barren 3" in chain.scripts[1].text
    assert not request.recipe.folder.exists()


def test_what_is_on_its_way_is_kept(request_of: Callable[..., Request]) -> None:
    request = request_of("surgery", "recalibration")
    surgery, training = accepted(request, "surgery", 7), accepted(request, "recalibration", 8)
    chain = plan(request, Queue((surgery, training), (state(7, "RUNNING"), state(8, "PENDING"))))
    assert chain == Chain({"surgery": [surgery], "recalibration": [training]}, [], [])


@pytest.mark.parametrize(("word", "is_replaced"), [("PENDING", True), ("RUNNING", False)])
def test_a_job_that_waits_for_what_begins_anew_is_replaced(
    word: str, is_replaced: bool, request_of: Callable[..., Request]
) -> None:
    """The surgery has failed; a training that runs all the same has its inputs."""
    request = request_of("surgery", "recalibration")
    training = accepted(request, "recalibration", 8)
    chain = plan(request, Queue((training,), (state(8, word),)))
    names = [script.stage_job.name for script in chain.scripts]
    assert names == (["surgery", "recalibration"] if is_replaced else ["surgery"])
    assert chain.replaced == ([training] if is_replaced else [])
    assert chain.kept == ({} if is_replaced else {"recalibration": [training]})


def test_only_tasks_that_are_neither_done_nor_on_their_way(
    request_of: Callable[..., Request], undone: Callable[..., None]
) -> None:
    request = request_of("data")
    array = accepted(request, "data", 7, tasks=(2, 3), offset=2)
    undone(0, 3, 4)
    chain = plan(request, Queue((array,), (state(7, "PENDING", 1),)))  # index 1 is task 3
    assert [script.tasks for script in chain.scripts] == [[0, 4], []]
    assert chain.kept == {"data": [array]}


def test_what_a_job_waits_for(request_of: Callable[..., Request]) -> None:
    request = request_of("data", "surgery", "recalibration")
    data, merge, surgery, training = request.jobs
    old, merged = accepted(request, "data", 5), accepted(request, "data-merge", 6)
    queue = Queue((old, merged))
    new = [accepted(request, "data", 11), accepted(request, "data-merge", 12), accepted(request, "surgery", 13)]
    assert dependencies(data, [], queue, []) == dependencies(surgery, [], queue, []) == ""
    assert dependencies(merge, [], queue, []) == "afterok:5"
    assert dependencies(merge, new, queue, []) == "afterok:11,afterany:5"  # tasks of 5 may have failed
    assert dependencies(training, new, queue, [merged]) == "afterok:12,afterok:13"


def test_a_stage_before_those_asked_for_must_be_on_its_way(request_of: Callable[..., Request]) -> None:
    request = request_of("recalibration")
    refuse_missing_needs(request_of(), [])
    refuse_missing_needs(request, ["data-merge", "surgery"])
    with pytest.raises(RecipeError, match=r"^--from recalibration: stage recalibration needs stage data, which is not"):
        refuse_missing_needs(request, ["data", "surgery"])


def test_indices_lie_below_slurms_limit() -> None:
    assert arrays_of([0, 3, 4, 11], 4) == {0: [0, 3], 4: [0], 8: [3]}
    assert arrays_of([], 4) == {}


@pytest.mark.parametrize(
    "options",
    [
        JobOptions(part="surgery"),
        JobOptions(part="data", of=9, offset=4, barren=5),
        JobOptions(part="recalibration", per_node=8, nodes_min=2, exclude="n[1-3]"),
    ],
)
def test_a_job_reads_the_options_that_its_script_has(
    options: JobOptions, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(allocation, "run_job", lambda recipe, options: given.append(options) or 7)
    result = CliRunner().invoke(job_command, [str(write_recipe()), *options.as_words()])
    assert (result.exit_code, given) == (7, [options]), result.output


def test_what_a_stage_job_does() -> None:
    assert [JobOptions(part=part).does for part in ("data-merge", "surgery")] == ["merge", "all"]
    assert JobOptions(part="data", of=2).does == "tasks"
    assert JobOptions(part="data-merge", of=2).stage == "data"
