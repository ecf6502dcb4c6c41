"""Starting the worker processes of a stage, and not leaving any behind."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from pipeline.errors import StageFailed

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies, so that a killed run leaves no orphan that still writes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def torchrun(module: str, arguments: list[str], *, processes: int) -> None:
    """Runs `python -m module` in `processes` ranks on this machine; standard error of rank 0 stays visible.

    Raises: StageFailed if a rank fails; its traceback stands on standard error.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", module, *arguments]
    result = subprocess.run(command, env=worker_environment(processes), preexec_fn=die_with_parent, check=False)
    if result.returncode:
        raise StageFailed(f"{module} ended with code {result.returncode}; its messages stand above")


def worker_environment(processes: int) -> dict[str, str]:
    """The environment of the ranks: their share of the cores, and ninja (in this Python's bin) on the path."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    environment.setdefault("PYTHONWARNINGS", "ignore")
    return environment
