"""The machine and the versions that a measurement belongs to."""

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

LIBRARIES = ("megatron-core", "tokenizers", "sentencepiece", "fastokens", "gigatoken", "tokie", "pyarrow", "numpy")


def describe(datatrove: dict[str, str]) -> dict[str, str]:
    """What to print above a table; `datatrove` has the versions in its own environment."""
    cores = sorted(os.sched_getaffinity(0))
    return {
        "date": datetime.date.today().isoformat(),
        "CPU": _cpu(),
        "cores": f"{len(cores)} ({_threads_per_core()} thread(s) per core)",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{_system()}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {result}" for name in LIBRARIES if (result := _version(name))),
        "datatrove's environment": ", ".join(f"{name} {result}" for name, result in datatrove.items()) or "none",
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _threads_per_core() -> int:
    return round((psutil.cpu_count() or 1) / (psutil.cpu_count(logical=False) or psutil.cpu_count() or 1))


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.platform()
