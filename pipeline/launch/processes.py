"""Starting the worker processes of a stage, and not leaving any behind."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_prep.pool import available_cores
from model_surgery.megatron.cpu import accelerator_name
from pipeline.errors import StageFailed
from pipeline.launch.signals import wait_and_pass_on

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies, so that a killed run leaves no orphan that still writes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def tools_path() -> str:
    """PATH with this Python's own folder first: ninja lies there, and the virtual environment may not be activated."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


@dataclass(frozen=True)
class Failure:
    """How a torchrun failed: the line about its first rank that did."""

    line: str
    of_others: bool
    """Whether that rank ended only because one of another machine had."""
    time: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Torchrun:
    """A torchrun on this machine."""

    process: subprocess.Popen[bytes]
    _left: Path

    def failure(self) -> Failure | None:
        """Of one that has ended; None where all of its ranks ended well."""
        if self.process.returncode == 0:
            return None
        if self._left.is_file():
            return Failure(**json.loads(self._left.read_text(encoding="utf-8")))
        return Failure(f"torchrun ended with code {self.process.returncode}; its messages stand above", True, 0.0)


@contextmanager
def running(
    where: Sequence[str],
    module: str,
    arguments: Sequence[str],
    *,
    processes: int,
    output: IO[bytes] | None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Torchrun]:
    """`python -m module` in `processes` ranks on this machine; they are gone when the block is left.

    where: torchrun's options of machines and rendezvous. output: where standard output goes, which the engine fills;
    standard error (progress, errors) stays visible.
    """
    with tempfile.TemporaryDirectory(prefix="drope-") as folder:
        left = Path(folder) / "failure.json"
        command = [sys.executable, "-m", "pipeline.launch.launcher", str(left), *where, f"--nproc-per-node={processes}"]
        process = subprocess.Popen(
            [*command, "-m", module, *arguments],
            env={**worker_environment(processes), **(environment or {})},
            stdout=output,
            preexec_fn=_before_torchrun,
            # In a session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on.
            start_new_session=True,
        )
        try:
            yield Torchrun(process, left)
        finally:
            process.kill()  # its ranks die with it
            process.wait()


def torchrun(module: str, arguments: Sequence[str], *, processes: int, log: Path) -> bool:
    """Runs `python -m module` in `processes` ranks on this machine; whether they were asked to end meanwhile.

    Standard error (progress, errors) stays visible; what the engine prints to standard output goes to `log`.

    Raises: StageFailed if a rank fails, which names it; its traceback stands on standard error.
    """
    with (
        log.open("ab") as output,
        running(["--standalone"], module, arguments, processes=processes, output=output) as started,
    ):
        is_asked_to_stop = wait_and_pass_on(started.process)
        if failure := started.failure():
            raise StageFailed(failure.line)
    return is_asked_to_stop


def _before_torchrun() -> None:
    die_with_parent()
    # A scheduler may send it to all processes of a job; torchrun would die of it, ranks take it for themselves.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def worker_environment(processes: int) -> dict[str, str]:
    """The environment of the ranks: their share of the cores, ninja on the path, the accelerator for DeepSpeed."""
    environment = {**os.environ, "PATH": tools_path()}
    environment.setdefault("DS_ACCELERATOR", accelerator_name())
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    environment.setdefault("PYTHONWARNINGS", "ignore")
    return environment
