"""Ranks that stop answering end a training at once and by name; one that is only slow, or suspended, ends nothing."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from pipeline.errors import StageFailed
from pipeline.launch.processes import torchrun
from pipeline.recalibration.stragglers import HostTimes, spread
from pipeline.recalibration.watchdog import Fault
from pipeline.recalibration.watchdog.fault import ranks_in_words
from pipeline.recalibration.watchdog.hang_detector import AwakeClock, HangDetector
from pipeline.recalibration.watchdog.heartbeat import Heartbeat
from pipeline.recalibration.watchdog.watchdog import Watchdog

pytestmark = pytest.mark.real_processes  # They are killed.

WORKER, RANKS, LIMIT, FAULTY = "tests.pipeline.recalibration.watchdog_worker", 4, 3.0, 5
HOST = socket.gethostname()


def heartbeat(rank: int, count: int = 0, step: int | None = 7, order: int = 0, ended: bool = False) -> Heartbeat:
    return Heartbeat(rank, f"node{rank // 2}", 100 + rank, count, step, order, ("data", "forward")[order], 0, ended)


class Ranks:
    """Four ranks on two hosts, as rank `by` sees them; every second those that are not silent send one."""

    def __init__(self, by: int = 0) -> None:
        self.detector = HangDetector(by, RANKS, limit=10.0, store_host="node0")
        self.by, self.now, self.exchanges = by, 0.0, 0

    def judge(self, seconds: int, heartbeats: list[Heartbeat], silent: tuple[int, ...] = ()) -> Fault | None:
        for _ in range(seconds):
            self.now += 1.0
            self.exchanges += self.by not in silent
            heard = {b.rank: self.counted(b) if b.rank not in silent else b for b in heartbeats}
            heard = {rank: heard[rank] for rank in self.detector.watched}
            if fault := self.detector.judge(self.now, heartbeats[self.by], heard, self.exchanges):
                return fault
        return None

    def counted(self, b: Heartbeat) -> Heartbeat:
        return Heartbeat(b.rank, b.host, b.pid, self.exchanges, b.step, b.order, b.phase, b.progress, b.ended)


def test_who_holds_up_a_training_that_stands_still() -> None:
    waits = [heartbeat(rank, order=1) for rank in range(RANKS)]
    fault = Ranks().judge(20, [*waits[:2], heartbeat(2), heartbeat(3)], silent=(2, 3))
    assert fault.kind == "silent" and fault.ranks == (2, 3) and fault.waiting == (0, 1) and fault.seconds == 10.0
    assert fault.line.startswith(
        "ranks 2-3 (host node1) stopped answering 10 s ago, last heard in step 7 (data); ranks 0-1"
    )
    fault = Ranks().judge(20, [*waits[:3], heartbeat(3)])
    assert fault.line.startswith("rank 3 (host node1, pid 103) made no progress in step 7 (data) for 10 s; ranks 0-2")
    fault = Ranks().judge(20, waits)
    assert fault.line.startswith("all 4 ranks stand at the same point of step 7 (forward) for 10 s; where each stands:")
    # Rank 0 cannot find itself.
    assert Ranks(by=2).judge(20, waits) is None
    fault = Ranks(by=2).judge(20, waits, silent=(0,))
    assert (fault.kind, fault.ranks, fault.waiting, fault.found_by) == ("silent", (0,), (1, 2, 3), 2)
    fault = Ranks(by=2).judge(20, waits, silent=(2,))
    assert (fault.kind, fault.hosts) == ("unreachable", ("node0",))
    assert fault.line.startswith("the machine of rank 0 (host node0) cannot be reached; nothing has moved since step 7")


def test_what_is_no_fault() -> None:
    waits = [heartbeat(rank, order=1) for rank in range(RANKS)]
    for silent in ((1, 3), (0,)):  # others, or the store, are not heard, but the training goes on
        ranks = Ranks()
        for step in range(10):
            assert ranks.judge(8, [heartbeat(rank, step=step) for rank in range(RANKS)], silent) is None
    ranks = Ranks()
    for count in range(10):  # one writes a long checkpoint
        busy = Heartbeat(3, "node1", 103, count, 7, 0, "checkpoint", count, False)
        assert ranks.judge(8, [*waits[:3], busy]) is None
    assert Ranks().judge(100, [*waits[:3], heartbeat(3, step=None)]) is None  # one is still starting
    assert Ranks(by=3).judge(100, [*waits[:3], heartbeat(3, step=None)], silent=(0,)) is None
    gone = [heartbeat(rank, ended=True) for rank in range(RANKS)]
    assert Ranks(by=2).judge(100, [gone[0], *waits[1:]], silent=(0,)) is None  # rank 0 is through
    assert Ranks().judge(100, gone) is None


def test_sleep_of_the_watcher_does_not_count() -> None:
    clock = AwakeClock(longest_gap=2.0)
    assert [clock.read(now) for now in (5.0, 6.0, 6.5, 3606.5, 3607.0)] == [0.0, 1.0, 1.5, 3.5, 4.0]


def test_ranks_in_words() -> None:
    assert ranks_in_words([3]) == "rank 3"
    assert ranks_in_words([5, 0, 1, 2, 7, 6]) == "ranks 0-2, 5-7"


def test_the_slowest_rank_and_host() -> None:
    hosts = ["node0", "node0", "node1", "node1", "node2", "node2"]
    slowest = spread([1.0, 1.2, 1.0, 1.8, 1.0, 1.1], hosts)
    assert (slowest.slowest_rank, slowest.slowest_host, slowest.seconds_max) == (3, "node1", 1.8)
    assert slowest.seconds_median == pytest.approx(1.05) and slowest.ratio == pytest.approx(1.8 / 1.05)
    assert spread([0.0, 0.0], ["a", "b"]).ratio == 1.0
    times = HostTimes(hosts, steps=4)
    times.add([9.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # falls out of the four
    for _ in range(4):
        times.add([1.0, 1.1, 0.5, 1.32, 1.0, 1.1])
    assert times.slowest().line == "slowest host over the last 4 steps: node1, 20% above the median"


def run(case: str, out_dir: Path) -> None:
    """Three ranks of the worker."""
    torchrun(WORKER, [case, str(out_dir), str(LIMIT)], processes=3, log=out_dir / "log")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["frozen 2", *(pytest.param(case, marks=pytest.mark.long) for case in ("frozen 0", "reading 1"))]
)
def test_a_rank_that_stops_ends_the_job_by_name(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    what, rank = case.split()[0], int(case.split()[1])
    with pytest.raises(StageFailed):
        run(case, tmp_path)
    ended = time.time()
    fault, others = Fault.take(tmp_path), sorted({0, 1, 2} - {rank})
    assert (fault.kind, fault.ranks, fault.hosts) == ("silent" if what == "frozen" else "stalled", (rank,), (HOST,))
    assert fault.waiting == tuple(others) and (fault.step == FAULTY or what == "frozen")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("drope: ")]
    assert lines == [f"drope: {fault.line}"]
    did = "stopped answering" if what == "frozen" else "made no progress in step 5 (data) for"
    assert f"rank {rank} (host {HOST}, pid {fault.pids[0]}) {did}" in lines[0]
    stacks = {path.name: path for path in (tmp_path / fault.stacks).iterdir()}
    shown = [0, 1, 2] if what == "reading" else others
    assert sorted(stacks) == [f"rank-{number:05d}.txt" for number in shown]
    assert "all_gather" in stacks[f"rank-{others[0]:05d}.txt"].read_text()
    assert what != "reading" or "go_wrong" in stacks[f"rank-{rank:05d}.txt"].read_text()
    # The stacks are written when the fault has been found.
    assert LIMIT / 2 <= fault.seconds < LIMIT + 3
    assert ended - min(path.stat().st_mtime for path in stacks.values()) < 8


@pytest.mark.slow
def test_slow_phases_and_suspended_jobs_end_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("healthy 1", tmp_path)
    assert Fault.take(tmp_path) is None and "drope:" not in capfd.readouterr().err
    times = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(3)]
    assert times[0] == times[1] == times[2] and len(times[0]) == 8
    calm = [step for number, step in enumerate(times[0], start=1) if number != FAULTY]
    slowest = [spread(step, ["a", "b", "c"]).slowest_rank for step in calm]
    assert slowest.count(1) > len(calm) / 2  # others may have to wait for a core


@pytest.mark.slow
def test_a_machine_of_the_store_that_is_gone_ends_the_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageFailed, match="code -9"):
        run("torchrun 1", tmp_path)
    fault = Fault.take(tmp_path)
    assert (fault.kind, fault.ranks, fault.hosts, fault.step) == ("unreachable", (0,), ("localhost",), FAULTY)
    assert [line for line in capfd.readouterr().err.splitlines() if "drope:" in line] == [f"drope: {fault.line}"]
    assert fault.line.startswith(
        "the machine of rank 0 (host localhost) cannot be reached; nothing has moved since step"
    )


def test_a_mark_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    watchdog, marks = Watchdog(tmp_path, LIMIT), 100_000
    began = os.times().user
    for step in range(marks):
        watchdog.mark(step, "forward")
    assert (os.times().user - began) / marks < 5e-6
