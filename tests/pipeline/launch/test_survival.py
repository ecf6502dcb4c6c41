"""A training that is stopped, looked at, damaged, gone on with by other ranks and branched off, as a user does it."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from pipeline.errors import REQUEUE
from pipeline.recalibration.metrics import read_events, read_metrics
from pipeline.runs.manifest import Manifest
from tests.forked import Starter

pytestmark = pytest.mark.slow

TRAINING = ("--stage", "data", "--stage", "surgery", "--stage", "recalibration")
STEPS = 60


@pytest.fixture(scope="module")
def stopped(raw_recipe: dict[str, Any], starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose training was stopped by SIGUSR1 after its third checkpoint."""
    root = tmp_path_factory.mktemp("stopped")
    recipe = root / "recipe.yaml"
    training = raw_recipe["recalibration"] | {"tokens": STEPS * 4 * 32, "validation_lengths": [1, 2], "keep_every": 3}
    recipe.write_text(json.dumps({**raw_recipe, "recalibration": training, "runs_dir": str(root / "runs")}))
    command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), *TRAINING]
    with (root / "stderr").open("w") as errors:
        process = starter.Popen(command, stderr=errors)
    checkpoints, deadline = root / "runs/tiny/recalibration/checkpoints", time.monotonic() + 240
    while len([*checkpoints.glob("step-*/complete")]) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    code, stderr_text = process.wait(120), (root / "stderr").read_text()
    assert code == REQUEUE, stderr_text
    assert "the next run goes on from it" in stderr_text.strip().splitlines()[-1]
    assert "Traceback" not in stderr_text
    return recipe


def run_of(recipe: Path, name: str = "tiny") -> Path:
    return recipe.parent / "runs" / name


def test_a_stopped_training_has_a_checkpoint_of_its_last_step_that_can_be_exported(stopped: Path, drope: Any) -> None:
    training = run_of(stopped) / "recalibration"
    last = read_metrics(training)[-1]["step"]
    assert 9 <= last < STEPS
    assert not (training / "manifest.json").exists()
    exported = drope("export", stopped, "--step", "newest")
    assert exported.returncode == 0, exported.stderr
    folder = run_of(stopped) / "snapshots" / f"step-{last:08d}"
    assert exported.stdout.strip() == f"model: {folder.resolve()}"
    assert AutoModelForCausalLM.from_pretrained(folder).config.drope["trained_steps"] == last
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    again, unknown = drope("export", stopped, "--step", last), drope("export", stopped, "--step", 7)
    assert (again.returncode, unknown.returncode) == (2, 2)
    assert "is there already" in again.stderr
    assert "--step 7: there are complete checkpoints of 3, 6, " in unknown.stderr
    losses = {line["step"]: line["validation_loss"] for line in read_metrics(training) if "validation_loss" in line}
    lowest = min(losses.keys() - {0}, key=losses.__getitem__)
    shutil.rmtree(folder)  # the best may be the newest
    best = drope("export", stopped, "--step", "best")
    assert best.returncode == 0 and best.stdout.strip().endswith(f"step-{lowest:08d}"), best.stderr


def test_damaged_checkpoints_are_passed_by_and_other_ranks_go_on(stopped: Path, drope: Any) -> None:
    """The newest has a flipped byte, the one before a cut state.json; TP 2 becomes TP 1 x DP 2, ZeRO 1 ZeRO 2."""
    training = run_of(stopped) / "recalibration"
    *_, intact, before, newest = sorted(training.glob("checkpoints/step-*"))
    victim = max(newest.glob("*.pt"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    (before / "state.json").write_text((before / "state.json").read_text()[:100])
    changes = ("surgery.tensor_parallel=1", "recalibration.data_parallel=2", "recalibration.zero_stage=2")
    result = drope("run", stopped, *TRAINING, *changes)
    assert result.returncode == 0, result.stderr
    assert f"checkpoint {newest.name} is damaged: the bytes of {victim.name}" in result.stderr
    assert f"checkpoint {before.name} is damaged: {before}/state.json: not the state of a checkpoint" in result.stderr
    assert [path.name for path in training.glob("checkpoints/damaged-*")] == [f"damaged-{before.name}"]  # the last one
    lines, events = read_metrics(training), read_events(training)
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert all("validation_loss_2x" in line for line in lines if "validation_loss" in line)
    started = [(event["step"], event["tensor_parallel"]) for event in events if event["event"] == "started"]
    assert started == [(0, 2), (int(intact.name[5:]), 1)]
    facts = Manifest.load(training).facts
    assert (facts["sessions"], facts["processes"], facts["updates_skipped"], facts["rollbacks"]) == (2, 2, 0, 0)
    assert facts["machines"][0].endswith(": 2 x CPU (x86_64)") or "CUDA" in facts["machines"][0]


@pytest.mark.long
def test_a_decay_is_branched_off_a_kept_checkpoint(stopped: Path, drope: Any) -> None:
    """Another schedule and a shorter budget, from step 6 of the run that went on."""
    trunk = run_of(stopped) / "recalibration"
    settings = (
        "name=branch",
        f"recalibration.branch_from={trunk / 'checkpoints' / 'step-00000006'}",
        "recalibration.schedule={kind: wsd, warmup_steps: 2, decay_steps: 4, decay: linear}",
        f"recalibration.tokens={10 * 4 * 32}",
    )
    result = drope("run", stopped, *TRAINING, *settings)
    assert result.returncode == 0, result.stderr
    branch = run_of(stopped, "branch") / "recalibration"
    lines = read_metrics(branch)
    assert lines[:7] == read_metrics(trunk)[:7]
    assert [line["lr"] for line in lines[7:]] == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3, 0.0])
    assert Manifest.load(branch).facts["continued_from"]["step"] == 6

    def refusal(*changes: str) -> str:
        refused = drope("run", stopped, *TRAINING, *settings, "name=other", *changes)
        assert refused.returncode == 2, refused.stderr
        return refused.stderr.strip().splitlines()[-1]

    assert "no state.json" in refusal(f"recalibration.branch_from={trunk}")
    assert "is enough for 5" in refusal(f"recalibration.tokens={5 * 4 * 32}", "recalibration.schedule.decay_steps=1")


def test_a_signal_as_training_ends_keeps_the_next_stage_from_beginning(
    raw_recipe: dict[str, Any], tmp_path: Path, starter: Starter, drope: Any
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(raw_recipe | {"runs_dir": str(tmp_path / "runs")}))
    code = (
        "import os; from pipeline.recalibration import run as stage; from pipeline.cli import main; "
        "os.environ['COMMAND_OF_TEST'] = str(os.getpid()); "
        "stage.WORKER = 'tests.pipeline.launch.late_signal_worker'; main()"
    )
    settings = ("recalibration.data_parallel=1", "surgery.tensor_parallel=1")
    stopped = starter.run([sys.executable, "-c", code, "run", str(recipe), *settings], timeout=300)
    assert stopped.returncode == REQUEUE, stopped.stderr
    last = stopped.stderr.strip().splitlines()[-1]
    assert last == "drope: stopped by SIGTERM before export; what comes before it is complete; the same command goes on"
    assert (run_of(recipe) / "recalibration" / "manifest.json").is_file() and not (run_of(recipe) / "export").exists()
    assert drope("run", recipe, *settings).returncode == 0
