"""Submitting on a real SLURM: what is refused, what two submits at once do, what one that was cut off leaves."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.submission.lock import only_one
from pipeline.errors import RecipeError
from tests.pipeline.cluster.conftest import ClusterRun

MakeRun = Callable[..., ClusterRun]
PARTS = {"data", "data-merge", "surgery", "recalibration", "export", "evaluation", "evaluation-merge", "report"}


def queue(run: ClusterRun) -> Counter[str]:
    """Jobs of the run in SLURM, by part; an array counts once."""
    lines = set(run.cluster.command("squeue", "-h", "-r", "-o", "%F %j").splitlines())
    return Counter(line.split(".")[1] for line in lines)


@pytest.fixture
def held(cluster: Any) -> Any:
    """Nothing begins while the test looks at the queue."""
    for node in ("node1", "node2", "node3"):
        cluster.command("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    yield
    cluster.command("scancel", "--full", "--user", "root")
    for node in ("node1", "node2", "node3"):
        cluster.command("scontrol", "update", f"nodename={node}", "state=resume")


@pytest.mark.parametrize(
    ("profile", "sections", "said"),
    [
        ({"defaults": {"partition": "nowhere"}, "pools": {"cpu": {}, "nodes": {}}}, {}, "invalid partition specified"),
        ({"stages": {"surgery": {"time": "3-00:00:00"}}}, {}, "partition cpu allows 1 day, 0:00:00 at most"),
        ({"stages": {"recalibration": {"gpus": 4}}}, {}, "SLURM would refuse the job recalibration"),
        ({}, {"training": {"data_parallel": 4, "micro_batch": 1}}, "recalibration wants 4 processes"),
        ({"stages": {"surgery": {"nodes": 2, "colour": "red"}}}, {}, "stages.surgery.colour: unknown key"),
        ({}, {"data": {"sources": [{"path": "nowhere.jsonl"}]}}, "nowhere.jsonl: no such file, and no file"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_submitted(
    profile: dict[str, Any], sections: dict[str, Any], said: str, cluster_run: MakeRun
) -> None:
    run = cluster_run("refused", profile, **sections)
    text = run.submit(code=2)
    assert said in text and len(text.strip().splitlines()[-1]) < 500 and "Traceback" not in text
    assert not queue(run) and not JobsFolder(run.path).submitted()


def test_without_sbatch(cluster_run: MakeRun, tmp_path: Path) -> None:
    run = cluster_run()
    assert "no sbatch on the path" in run.submit(code=2, PATH=str(tmp_path))
    assert not run.path.exists()


def test_stages_from_and_until(cluster_run: MakeRun, held: None) -> None:
    run = cluster_run("some", training={"tokens": 1536})
    text = run.submit("--from", "export", code=2)
    assert "--from export: stage export needs stage recalibration, which is not complete" in text
    assert "export comes after data" in run.submit("--from", "export", "--until", "data", code=2)
    assert "this recipe has data, surgery" in run.submit("--until", "exprt", code=2)
    run.submit("--until", "recalibration")
    assert queue(run) == Counter({"recalibration": 1})  # data and surgery are complete
    run.submit("--from", "export")  # after the one that is on its way
    assert queue(run) == Counter(dict.fromkeys(PARTS - {"data", "data-merge", "surgery"}, 1))
    jobs = {job.part: job for job in JobsFolder(run.path).submitted()}
    assert jobs["export"].after == f"afterok:{jobs['recalibration'].job_id}"


def test_a_dry_run_prints_what_is_submitted_and_writes_nothing(cluster_run: MakeRun, held: None) -> None:
    run = cluster_run("dry")
    said = run.submit("--dry-run")
    assert not run.path.exists()
    run.submit()
    label = JobsFolder(run.path).label
    for script in (run.path / "jobs" / "scripts").iterdir():
        assert script.read_text() in said.replace("xxxxxxxx", label), script.name


def test_two_submits_at_once_make_one_chain(cluster_run: MakeRun, held: None) -> None:
    run = cluster_run("twice")
    command = [sys.executable, "-m", "pipeline.cli", "submit", str(run.recipe), "--cluster", str(run.profile)]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, cwd=run.folder, env=run.cluster.environment, **options) for _ in range(3)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert queue(run) == Counter(dict.fromkeys(PARTS, 1)), said
    codes = sorted(process.returncode for process in both)
    assert codes[0] == 0 and set(codes) <= {0, 2}, said
    for text, process in zip(said, both, strict=True):
        if process.returncode:
            assert f"drope submit of {run.name} is under way already" in text


@pytest.mark.parametrize("survivors", [1, 4])
def test_a_submit_that_was_cut_off_is_gone_on_with(
    survivors: int, cluster_run: MakeRun, held: None, tmp_path: Path
) -> None:
    """It is killed right after SLURM has accepted a job, before it could write that down."""
    run = cluster_run("cut")
    shim = tmp_path / "bin" / "sbatch"
    shim.parent.mkdir()
    shim.write_text(
        f'#!/bin/bash\n{shutil.which("sbatch")} "$@" || exit\ncase "$*" in *test-only*) exit;; esac\n'
        f'echo >>"{tmp_path}/accepted"\n[ "$(wc -l <"{tmp_path}/accepted")" -lt {survivors} ] || kill -9 $PPID\n'
    )
    shim.chmod(0o755)
    run.submit(code=-9, PATH=f"{shim.parent}:{os.environ['PATH']}")
    assert queue(run).total() == survivors
    said = run.submit()
    assert said.count("is on its way already") == survivors
    assert queue(run) == Counter(dict.fromkeys(PARTS, 1))
    journal = JobsFolder(run.path).submitted()
    assert Counter(job.part for job in journal) == Counter(dict.fromkeys(PARTS, 1))
    merge = next(job for job in journal if job.part == "data-merge")
    assert str(next(job.job_id for job in journal if job.part == "data")) in merge.after or survivors > 1


def test_cancel_ends_this_runs_jobs_alone(cluster_run: MakeRun, held: None) -> None:
    one, other = cluster_run("one"), cluster_run("one.data")  # whose names begin alike
    one.submit()
    other.submit("--until", "surgery")
    assert "cancelled:" in one.drope("cancel", "one", "--stage", "report")
    assert one.status()["report"]["state"] == "cancelled"
    assert len(one.drope("cancel", str(one.path)).split(",")) == len(PARTS) - 1
    assert set(queue(other)) == {"data"}  # of one.data
    assert other.status()["data"]["state"] == "waiting"
    assert "nothing waits or runs" in one.drope("cancel", "one")


def test_a_lock_of_the_dead_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import os; from pathlib import Path; from pipeline.cluster.submission.lock import only_one\n"
        f"with only_one(Path({str(path)!r}), 'it'): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert path.exists()
    with (
        only_one(path, "it"),
        pytest.raises(RecipeError, match="it is under way already: process"),
        only_one(path, "it"),
    ):
        raise AssertionError("two at once")
    assert not list(tmp_path.iterdir())


def test_the_queue_goes_on_when_the_run_moves_to_other_recipes(cluster_run: MakeRun, held: None) -> None:
    """Jobs keep the recipe that they were submitted with."""
    run = cluster_run("kept")
    run.submit("--until", "data")
    before = re.findall(r"jobs/recipe-\w+\.yaml", (run.path / "jobs" / "scripts" / "data.sh").read_text())
    time.sleep(0.1)
    run.submit("evaluation.context_factors=[1]", "--until", "recalibration")
    after = re.findall(r"jobs/recipe-\w+\.yaml", (run.path / "jobs" / "scripts" / "surgery.sh").read_text())
    assert set(before) != set(after) and len(list((run.path / "jobs").glob("recipe-*.yaml"))) == 2
