"""Trainings that are killed at random moments, in every way that a cluster has, end as if they never had been.

`pytest tests/pipeline/recalibration/test_kills.py --kills 4 -s` kills each of twelve kinds of training four times and
prints the table of docs/reliability.md; without --kills two kinds are killed, three times each.
"""

import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest

from model_surgery.layout import Layout
from pipeline.errors import REQUEUE
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.metrics import read_events, read_metrics
from pipeline.recipe.recalibration import RecalibrationConfig, ResolvedTraining

STEPS, CHECKPOINT_EVERY = 40, 3
ALL = [*product((1, 2), ("fp32", "bf16"), (1, 2, 3))]
FEW = [(2, "bf16", 3), pytest.param(1, "fp32", 1, marks=pytest.mark.long)]
HOW = ("SIGKILL", "SIGKILL of a rank", "SIGKILL in a save", "SIGTERM", "SIGUSR1", "SIGUSR1 to a rank")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "zero_stage" in metafunc.fixturenames:
        cases = ALL if metafunc.config.getoption("--kills") else FEW
        metafunc.parametrize(("tensor_parallel", "precision", "zero_stage"), cases)


@dataclass
class Victim:
    """A training that is started again until it has ended by itself."""

    spec: TrainingSpec
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    codes: list[int] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        path = self.spec.out_dir / "kill-job.json"
        path.write_text(self.spec.model_dump_json())
        command = [sys.executable, "-m", "tests.pipeline.recalibration.training_command", str(path)]
        with (self.spec.out_dir / "command.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def survive(self, kills: int) -> None:
        """Kills the training at `kills` random moments, then lets it end."""
        draw = random.Random(self.seed)
        for number in range(kills):
            how, attempts = HOW[(self.seed + number) % len(HOW)], self.attempts()
            process = self.start()
            # A signal means something from the first step of an attempt; SIGKILL may also come while it starts.
            while how != "SIGKILL" and self.attempts() == attempts and process.poll() is None:
                time.sleep(0.01)
            # Kills spread over the training: the next share of its steps each, and a moment within a step.
            first, share = STEPS * number // kills, STEPS // kills
            last = min(first + share - 1, STEPS - CHECKPOINT_EVERY - 2)  # a save, and steps to stop in, must come yet
            self.wait_for(process, how, draw.randint(first, last), draw.uniform(0.0, 0.05))
            if process.poll() is None:
                self.kill(process, how)
                self.kills[how] += 1
            self.codes.append(process.wait(timeout=120))
            self.wait_until_gone()
        assert self.start().wait(timeout=300) == 0, (self.spec.out_dir / "command.log").read_text()[-5000:]

    def attempts(self) -> int:
        """How often processes have begun to train."""
        return sum(event["event"] == "started" for event in read_events(self.spec.out_dir))

    def wait_for(self, process: subprocess.Popen[bytes], how: str, step: int, delay: float) -> None:
        """Until the step's line is written (for a kill in a save: until files of a checkpoint are)."""
        while process.poll() is None:
            lines = read_metrics(self.spec.out_dir)
            if lines and lines[-1]["step"] >= step:
                if how != "SIGKILL in a save":
                    time.sleep(delay)
                    return
                if any(self.spec.checkpoints.glob(".step-*/*")):
                    return
            time.sleep(0.002)

    def kill(self, process: subprocess.Popen[bytes], how: str) -> None:
        if "a rank" not in how:
            process.send_signal(getattr(signal, how.split()[0]))
        else:
            random.Random(self.seed).choice(self.ranks()).send_signal(getattr(signal, how.split()[0]))

    def ranks(self) -> list[psutil.Process]:
        """The training processes of this victim."""
        processes = []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if self.spec.model_dump_json() in line and "pipeline.launch.launcher" not in line:
                processes.append(process)
        return processes

    def wait_until_gone(self) -> None:
        """A killed training leaves no process that still writes."""
        _gone, alive = psutil.wait_procs(self.ranks(), timeout=60)
        assert not alive


@pytest.mark.long
@pytest.mark.slow
def test_killed_trainings_end_as_if_they_never_had_been(
    tensor_parallel: int,
    precision: str,
    zero_stage: int,
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Callable[..., list[dict[str, Any]]],
    without_measured: Callable[[list[dict]], list[dict]],
    pytestconfig: pytest.Config,
    tmp_path: Path,
) -> None:
    kills = pytestconfig.getoption("--kills") or 3
    config = settings(
        tokens=STEPS * 8 * 32,
        data_parallel=3 - tensor_parallel,
        zero_stage=zero_stage,
        precision=precision,
        checkpoint_every=CHECKPOINT_EVERY,
    )
    whole = train(config, layouts["untied"], shards, tmp_path / "whole", tensor_parallel=tensor_parallel)
    folders = {"layout": layouts["untied"], "shards": shards, "out_dir": tmp_path / "killed"}
    resolved = ResolvedTraining.model_validate(config.model_dump())
    spec = TrainingSpec(config=resolved, position_embedding="none", tensor_parallel=tensor_parallel, **folders)
    spec.out_dir.mkdir()
    victim = Victim(spec, seed=ALL.index((tensor_parallel, precision, zero_stage)) * kills)
    victim.survive(kills)
    print(f"\n| TP {tensor_parallel} | {precision} | ZeRO {zero_stage} | {dict(victim.kills)} | {victim.codes} |")
    lines = read_metrics(spec.out_dir)
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert without_measured(lines) == without_measured(whole)
    digests = [Layout.load(folder / "layout").digest() for folder in (spec.out_dir, tmp_path / "whole")]
    assert digests[0] == digests[1]
    assert sum(victim.kills.values()) == kills
    # Signals that ask for an end: a checkpoint, and the code on which a job script requeues.
    asked = sum(count for how, count in victim.kills.items() if "SIGKILL" not in how)
    assert victim.codes.count(REQUEUE) == asked
    assert not any(spec.checkpoints.glob(".step-*"))


@pytest.mark.long
@pytest.mark.slow
def test_a_training_whose_rank_freezes_ends_soon_and_says_which(
    layouts: dict[str, Path], shards: Path, settings: Callable[..., RecalibrationConfig], tmp_path: Path
) -> None:
    config = settings(tokens=STEPS * 8 * 32, checkpoint_every=CHECKPOINT_EVERY, hang_seconds=3)
    folders = {"layout": layouts["untied"], "shards": shards, "out_dir": tmp_path}
    resolved = ResolvedTraining.model_validate(config.model_dump())
    victim = Victim(TrainingSpec(config=resolved, position_embedding="none", tensor_parallel=2, **folders), seed=0)
    process = victim.start()
    victim.wait_for(process, "SIGSTOP", step=5, delay=0.0)
    frozen = victim.ranks()[-1]
    rank = frozen.environ()["RANK"]
    frozen.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert process.wait(timeout=60) == 1
    assert time.monotonic() - began < 30  # the limit of 3 s and the end of four processes, beside a whole suite
    last_line = (tmp_path / "command.log").read_text().splitlines()[-1]
    assert f"drope: rank {rank} (host {socket.gethostname()}, pid {frozen.pid}) stopped answering" in last_line
    (event,) = [event for event in read_events(tmp_path) if event["event"] == "hang"]
    assert event["line"] in last_line
    assert victim.start().wait(timeout=300) == 0
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(STEPS + 1))
