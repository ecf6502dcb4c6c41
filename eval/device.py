"""What this machine has to compute on, and the memory of it: the only module that asks."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eval.errors import EvaluationError

if TYPE_CHECKING:
    import torch

_GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of this process's control group, versions 2 and 1, as a container sees them."""


def pick_device(setting: Literal["auto", "cpu", "cuda"]) -> "torch.device":
    """The device for the recipe's setting.

    Raises: EvaluationError where cuda is asked for and absent.
    """
    import torch

    if setting == "cpu":
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if setting == "cuda" and (accelerator is None or accelerator.type != "cuda"):
        raise EvaluationError("device = cuda: no CUDA device is visible here; use auto or cpu")
    return torch.device("cpu") if accelerator is None else accelerator


def free_bytes(device: "torch.device") -> int:
    """Memory that may be filled with keys and values: three fifths of a GPU's free memory, a quarter of a machine's."""
    import psutil
    import torch

    if device.type == "cuda":
        # What torch keeps of memory that it has freed is free to the next that asks it.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + kept) * 3 // 5
    return psutil.virtual_memory().available // 4


def device_bytes(device: "torch.device") -> int:
    """All memory of a GPU; for a CPU the machine's, or what its control group may take of it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [path.read_text().strip() for path in _GROUP_LIMITS if path.is_file()]
    return min([machine, *(int(limit) for limit in limits if limit.isdecimal())])
