"""The watchdog of a training process: marks of its main thread, and two threads that publish and watch them."""

import faulthandler
import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

from pipeline.recalibration.callback import Callback
from pipeline.recalibration.watchdog.fault import Fault
from pipeline.recalibration.watchdog.hang_detector import AwakeClock, HangDetector
from pipeline.recalibration.watchdog.heartbeat import Heartbeat
from pipeline.recalibration.watchdog.heartbeat_channel import HeartbeatChannel

EXIT_CODE = 70
"""Of every rank that ends because the training stands still: EX_SOFTWARE of sysexits.h."""
_RECORD_SECONDS = 5.0


class Watchdog(Callback):
    """Ends a training whose ranks stand still, with the names of those that hold it up. A context manager.

        with Watchdog(out_dir, hang_seconds) as watchdog:
            watchdog.mark(step, "forward 0")

    Watching begins with the first mark: a start may take as long as it likes. From then on it is a fault if no rank
    sets a mark, or reports progress, for `hang_seconds`. One line then goes to standard error and hang.json, the stacks
    of every rank that still runs into stacks/, and all ranks end with EXIT_CODE, within a few seconds.
    Needs the environment of torchrun, and no process group.
    """

    def __init__(self, out_dir: Path, hang_seconds: float) -> None:
        self._out_dir, self._interval = out_dir, min(1.0, hang_seconds / 10)
        self._rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._detector = HangDetector(self._rank, world_size, hang_seconds, os.environ["MASTER_ADDR"])
        self._channel = HeartbeatChannel(self._rank, self._detector.watched, self._interval, self._heartbeat)
        self._clock = AwakeClock(hang_seconds / 4)
        self._at: tuple[int | None, int, str] = (None, 0, "start")
        self._progress = 0
        self._over, self._ends = threading.Event(), threading.Event()
        self._watcher = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def mark(self, step: int, phase: str) -> None:
        """This rank begins a phase of a step. Costs less than a microsecond.

        All ranks set the same marks in the same order within a step: who has set fewer of them is behind.
        """
        at = self._at
        self._at = (step, at[1] + 1 if at[0] == step else 0, phase)

    def phase_begin(self, step: int, phase: str) -> None:
        self.mark(step, phase)

    def progress(self) -> None:
        """Something within a phase has gone on; for what takes long, from any thread."""
        self._progress += 1

    def __enter__(self) -> "Watchdog":
        self._channel.start()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ends.is_set():
            # What is raised here now comes of others that have ended already.
            self._watcher.join()
        step, order, phase = self._at
        if kind is not None:
            self._at = (step, order, f"{phase}: {kind.__name__}")
        self._over.set()
        # The others wait for one that fails, and shall know where it did.
        self._channel.stop(in_good_order=kind is None)

    def _heartbeat(self, count: int, ended: bool) -> Heartbeat:
        (step, order, phase), progress = self._at, self._progress
        return Heartbeat(self._rank, self._host, self._pid, count, step, order, phase, progress, ended)

    def _look(self) -> None:
        channel = self._channel
        while not self._over.wait(self._interval):
            now = self._clock.read(time.monotonic())
            fault = self._detector.judge(now, self._heartbeat(0, False), channel.heard, channel.exchanges)
            if fault and fault.kind == "unreachable":
                self._end(fault, tells=os.environ["LOCAL_RANK"] == "0")
            if channel.verdict:
                self._end(channel.verdict, tells=channel.verdict == channel.proposed)
            if channel.proposed is None:
                channel.proposed = fault

    def _end(self, fault: Fault, *, tells: bool) -> None:
        """Ends this process, after the others have had the time to see the verdict and to write down where they are."""
        self._ends.set()
        # A file system that hangs must not hold up the end.
        record = threading.Thread(target=self._record, args=(fault, tells), daemon=True)
        record.start()
        time.sleep(2 * self._interval)
        record.join(_RECORD_SECONDS)
        try:
            kill_what_hangs(fault, self._host)
        finally:
            os._exit(EXIT_CODE)

    def _record(self, fault: Fault, tells: bool) -> None:
        if tells:
            # Not by sys.stderr: the main thread may hold its lock. A progress bar may stand in this line.
            os.write(2, f"\ndrope: {fault.line}\n".encode())
            fault.save(self._out_dir)
        path = self._out_dir / fault.stacks / f"rank-{self._rank:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            step, _, phase = self._at
            file.write(f"rank {self._rank} (host {self._host}, pid {self._pid}) in step {step} ({phase})\n")
            file.flush()
            faulthandler.dump_traceback(file)


def kill_what_hangs(fault: Fault, host: str) -> None:
    """SIGKILL for processes around this one that cannot end by themselves.

    Ranks of this host that do not answer: torchrun would wait half a minute for them to take its SIGTERM. They are
    looked for among its children, since other processes may have come to their numbers. And torchrun itself, whose
    calls of an unreachable store never return; its other ranks end with it.
    """
    if fault.kind == "unreachable" and "TORCHELASTIC_RUN_ID" in os.environ:
        os.kill(os.getppid(), signal.SIGKILL)
    if fault.kind == "silent":
        silent = {pid for pid, its_host in zip(fault.pids, fault.hosts, strict=True) if its_host == host}
        for process in psutil.Process(os.getppid()).children():
            if process.pid in silent:
                process.send_signal(signal.SIGKILL)
