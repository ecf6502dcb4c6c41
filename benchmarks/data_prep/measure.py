"""One command, run alone on some cores: its wall time, CPU time and memory."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Run:
    """What one run took. Memory is resident memory; the sum counts pages that processes share once for each of them."""

    seconds: float  # wall time of the whole command, its start-up included
    cpu_seconds: float  # of all its processes
    peak_process_bytes: int  # of the largest process, at its largest
    peak_sum_bytes: int  # of all processes together, at their largest
    processes: int  # at most at one time
    others_cores: float  # cores that the rest of the machine kept busy meanwhile, on average


class CommandFailed(RuntimeError):
    """A command ended with another status than 0; the message holds the end of what it said."""


def run(command: Sequence[str], *, cores: Sequence[int], environment: dict[str, str], log: Path) -> Run:
    """Run `command` with its whole process tree bound to `cores`; what it prints goes to `log`.

    Raises: CommandFailed.
    """
    cpu_before, busy_before, started = _children_cpu(), _busy(), time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        watch = _Watch(process.pid)
        while process.poll() is None:
            watch.sample()
            try:
                process.wait(SAMPLE_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    seconds = time.perf_counter() - started
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise CommandFailed(f"status {process.returncode}: {' '.join(command)}\n{tail}")
    # The first misses what a fork server started, the second the end of each process.
    cpu = max(_children_cpu() - cpu_before, sum(watch.cpu_seconds.values()))
    others = max(0.0, _busy() - busy_before - cpu) / seconds
    return Run(seconds, cpu, max(watch.resident.values(), default=0), watch.peak_sum, watch.processes, others)


class _Watch:
    """A process and all that descend from it: peak resident memory and CPU time of each, by process id."""

    def __init__(self, pid: int) -> None:
        self.resident: dict[int, int] = {}
        self.cpu_seconds: dict[int, float] = {}
        self.peak_sum = self.processes = 0
        self._root = psutil.Process(pid)

    def sample(self) -> None:
        now: dict[int, int] = {}
        try:
            tree = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in tree:
            try:
                with member.oneshot():
                    now[member.pid] = member.memory_info().rss
                    times = member.cpu_times()
                self.cpu_seconds[member.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        for pid, size in now.items():
            self.resident[pid] = max(size, self.resident.get(pid, 0))
        self.peak_sum = max(self.peak_sum, sum(now.values()))
        self.processes = max(self.processes, len(now))


def _children_cpu() -> float:
    """CPU seconds of all ended processes that descend from this one."""
    times = os.times()
    return times.children_user + times.children_system


def _busy() -> float:
    """CPU seconds that the machine has spent on anything."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal
