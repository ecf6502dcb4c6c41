"""What the processes of a training run on, and what they use of it."""

import platform
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held so far: of its GPU as torch allocated it, else resident memory.

    Raises: RuntimeError if the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (found := _PEAK.search(Path("/proc/self/status").read_text(encoding="ascii"))) is None:
        raise RuntimeError("/proc/self/status does not say VmHWM, the peak of resident memory")
    return int(found[1]) * 1024


def device_name(device: torch.device) -> str:
    """The GPU's name, else the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def described(machines: Iterable[tuple[str, str]]) -> list[str]:
    """(host, device) of every rank as one line per host and device: 'node7: 8 x NVIDIA H100'."""
    return [f"{host}: {count} x {name}" for (host, name), count in Counter(machines).items()]
