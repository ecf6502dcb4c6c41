"""Memory of the devices of this machine."""

import os

ASSUMED_MEMORY = 80_000_000_000
"""Bytes of a GPU for which is planned on a machine without one."""


def device_memory() -> int:
    """Bytes of this machine's smallest GPU; without one, half of its main memory.

    Half of all, not what is free at the moment: a run that is resumed must choose the same.
    """
    import torch

    if count := torch.cuda.device_count():
        return min(torch.cuda.get_device_properties(number).total_memory for number in range(count))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
