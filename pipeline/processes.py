"""Starting the worker processes of a stage, and not leaving any behind."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from model_surgery.megatron.cpu import accelerator_name
from pipeline.errors import StageFailed
from pipeline.signals import wait_and_pass_on

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies, so that a killed run leaves no orphan that still writes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def tools_path() -> str:
    """PATH with this Python's own folder first: ninja lies there, and the virtual environment may not be activated."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def torchrun(module: str, arguments: list[str], *, processes: int, log: Path) -> bool:
    """Runs `python -m module` in `processes` ranks on this machine; whether they were asked to end meanwhile.

    Standard error (progress, errors) stays visible; what the engine prints to standard output goes to `log`.

    Raises: StageFailed if a rank fails, which names it; its traceback stands on standard error.
    """
    line = log.with_name("failure.txt")
    line.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pipeline.launcher", str(line), "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", module, *arguments]
    with log.open("ab") as output:
        # In a session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on.
        options = {"preexec_fn": _before_torchrun, "start_new_session": True}
        process = subprocess.Popen(command, env=worker_environment(processes), stdout=output, **options)
        try:
            asked = wait_and_pass_on(process)
        finally:
            process.kill()  # its ranks die with it
            process.wait()
    if process.returncode:
        if line.is_file():
            raise StageFailed(line.read_text(encoding="utf-8"))
        raise StageFailed(f"{module} ended with code {process.returncode}; its messages stand above")
    return asked


def _before_torchrun() -> None:
    die_with_parent()
    # A scheduler may send it to all processes of a job; torchrun would die of it, ranks take it for themselves.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def worker_environment(processes: int) -> dict[str, str]:
    """The environment of the ranks: their share of the cores, ninja on the path, the accelerator for DeepSpeed."""
    environment = {**os.environ, "PATH": tools_path()}
    environment.setdefault("DS_ACCELERATOR", accelerator_name())
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    environment.setdefault("PYTHONWARNINGS", "ignore")
    return environment
