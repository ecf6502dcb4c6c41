"""Starting the worker processes of a stage, and not leaving any behind."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from model_surgery.megatron.cpu import accelerator_name
from pipeline.errors import StageFailed

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies, so that a killed run leaves no orphan that still writes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def tools_path() -> str:
    """PATH with this Python's own folder first: ninja lies there, and the virtual environment may not be activated."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def torchrun(module: str, arguments: list[str], *, processes: int, log: Path) -> None:
    """Runs `python -m module` in `processes` ranks on this machine.

    Standard error (progress, errors) stays visible; what the engine prints to standard output goes to `log`.

    Raises: StageFailed if a rank fails; its traceback stands on standard error.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", module, *arguments]
    with log.open("ab") as output:
        result = subprocess.run(
            command, env=worker_environment(processes), stdout=output, preexec_fn=die_with_parent, check=False
        )
    if result.returncode:
        raise StageFailed(f"{module} ended with code {result.returncode}; its messages stand above")


def worker_environment(processes: int) -> dict[str, str]:
    """The environment of the ranks: their share of the cores, ninja on the path, the accelerator for DeepSpeed."""
    environment = {**os.environ, "PATH": tools_path()}
    environment.setdefault("DS_ACCELERATOR", accelerator_name())
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    environment.setdefault("PYTHONWARNINGS", "ignore")
    return environment
