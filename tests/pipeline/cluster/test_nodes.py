"""Nodes of a training that meet, on this machine: who is let in, who is named, what ends with whom."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.allocation import follower, gathering, session
from pipeline.cluster.allocation.follower import follow
from pipeline.cluster.allocation.gathering import listen
from pipeline.cluster.allocation.head import Head
from pipeline.cluster.allocation.versions import first_difference
from pipeline.cluster.allocation.wire import Wire, interface_of
from pipeline.errors import RecipeError, StageFailed
from slurm.step import Step

pytestmark = pytest.mark.real_processes

TOKEN, VERSIONS = "secret", {"torch": "2.13.0", "git": "unknown"}


@pytest.fixture
def step() -> Step:
    """The first of two nodes, both this machine. Job numbers differ, so that tests that run beside each other do."""
    number = os.getpid() * 10 + int(time.monotonic() * 10) % 10
    return Step(number, None, number, 0, 0, ("localhost", "other"), "127.0.0.1")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes wait two seconds for each other, not a minute."""
    monkeypatch.setattr(gathering, "GATHERING_SECONDS", 2.0)
    monkeypatch.setattr(follower, "GATHERING_SECONDS", 2.0)
    monkeypatch.setattr(session, "FAILING_SECONDS", 3.0)


class Beside(threading.Thread):
    """A first node in a thread: what it returned or raised."""

    def __init__(self, step: Step, work: Callable[[Head], object], **changes: Any) -> None:
        super().__init__(daemon=True)
        self._head = Head(step, **({"token": TOKEN, "per_node": 2, "versions": VERSIONS} | changes))
        self._work, self.result, self.error = work, None, None
        self.start()

    def run(self) -> None:
        try:
            with self._head as gathered:
                self.result = self._work(gathered)
                gathered.verdict = 0
        except Exception as error:
            self.error = error

    @property
    def lost(self) -> list[str]:
        return self._head.lost


def second(step: Step, log: Path, versions: dict[str, str] = VERSIONS) -> int:
    return follow(replace(step, index=1), token=TOKEN, versions=versions, log_file=log)


@pytest.fixture
def output_kept() -> Iterator[None]:
    """A follower sends its output to its log; this process gets its own back."""
    kept = [os.dup(stream) for stream in (1, 2)]
    yield
    for stream, copy in enumerate(kept, start=1):
        os.dup2(copy, stream)
        os.close(copy)


def test_a_node_with_other_versions_is_named(step: Step, quick: None, tmp_path: Path) -> None:
    first = Beside(step, lambda gathered: None)
    code = second(step, tmp_path / "log", {"torch": "2.12.1", "git": "abc"})
    first.join(10)
    assert isinstance(first.error, RecipeError) and code == 1
    assert str(first.error).startswith("other has torch 2.12.1, localhost has 2.13.0: all nodes need the same")


def test_what_is_not_known_on_both_sides_is_not_compared() -> None:
    assert first_difference({"b": {"git": "abc"}}, "a", {"git": "unknown", "torch": "1"}) is None


def test_a_node_that_cannot_reach_the_first_says_so(step: Step, quick: None, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="other cannot reach localhost, the first node of the job, within 2 s: 127"):
        second(step, tmp_path / "log")


def test_a_node_that_does_not_come_is_named(step: Step, quick: None) -> None:
    first = Beside(step, lambda gathered: None)
    first.join(10)
    assert isinstance(first.error, StageFailed)
    assert str(first.error).startswith("other did not reach localhost within 2 s")


def test_strangers_and_taken_ports_do_not_matter(
    step: Step, quick: None, tmp_path: Path, output_kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "GATHERING_SECONDS", 20.0)
    monkeypatch.setattr(follower, "GATHERING_SECONDS", 20.0)
    monkeypatch.setattr(gathering, "_HELLO_SECONDS", 0.5)
    monkeypatch.setattr(follower, "_TRY_SECONDS", 1.0)
    with listen(step.ports[:1]):  # somebody else's, who never answers
        first = Beside(step, lambda gathered: gathered.slots)
        time.sleep(0.3)
        silent = socket.create_connection(("127.0.0.1", step.ports[1]))
        loud = socket.create_connection(("127.0.0.1", step.ports[1]))
        loud.sendall(b"GET / HTTP/1.1\r\n\r\n")
        thief = Wire(socket.create_connection(("127.0.0.1", step.ports[1])))
        thief.send("hello", token="guessed é", job=step.own_id, rank=1, versions=VERSIONS)
        assert second(step, tmp_path / "log") == 0
    first.join(10)
    assert first.result == 4 and first.error is None
    for connection in (silent, loud):
        connection.close()


WORKER = "tests.pipeline.cluster.meeting_worker"


def other_node(step: Step, log: Path) -> subprocess.Popen[bytes]:
    """The second node as a process of its own."""
    code = (
        "import sys; from pathlib import Path; from slurm.step import Step;"
        "from pipeline.cluster.allocation.follower import follow;"
        "n = int(sys.argv[1]); s = Step(n, None, n, 0, 1, ('localhost', 'other'), '127.0.0.1');"
        f"sys.exit(follow(s, token={TOKEN!r}, versions={VERSIONS!r}, log_file=Path(sys.argv[2])))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(step.own_id), str(log)])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["well", pytest.param("raises", marks=pytest.mark.long), "dies"])
def test_ranks_of_two_nodes(how: str, step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks here and one there: they end well, one there raises, or the other node is gone at once."""
    monkeypatch.setattr(session, "FAILING_SECONDS", 5.0)
    out = tmp_path / "out"
    out.mkdir()
    other = other_node(step, tmp_path / "other.log")

    def work(gathered: Head) -> bool:
        return gathered.torchrun(WORKER, [str(out), how], processes=3, log=tmp_path / "log")

    first = Beside(step, work)
    if how == "dies":
        while not (out / "2").exists():
            time.sleep(0.1)
        other.send_signal(signal.SIGKILL)
    first.join(120)
    other.wait(60)
    if how == "well":
        assert first.error is None and first.result is False and other.returncode == 0
        assert [(out / str(rank)).read_text() for rank in range(3)] == ["0 2 3", "1 2 3", "0 1 3"]
    elif how == "raises":
        assert "rank 2 on" in str(first.error) and "ValueError: there is something wrong here" in str(first.error)
        assert other.returncode == 1 and not first.lost
        assert "ValueError: there is something wrong here" in (tmp_path / "other.log").read_text()
    else:
        assert first.lost == ["other"] and "other went away" in str(first.error)


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
