"""The machines that a stage may start processes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.launch.devices import device_memory


class Machines(Protocol):
    """One machine, or several nodes of a cluster."""

    @property
    def slots(self) -> int:
        """Processes that there is room for, one to a GPU; 0: any number, which share one machine without GPUs."""

    @property
    def memory_bytes(self) -> int:
        """Memory of one slot; without slots, what all processes share."""

    def torchrun(self, module: str, arguments: Sequence[str], *, processes: int, log: Path) -> bool:
        """Runs `python -m module` in that many ranks; whether they were asked to end meanwhile.

        Raises: StageFailed if a rank fails, which names it.
        """


class ThisMachine:
    """The machine that this process runs on."""

    @property
    def slots(self) -> int:
        import torch

        return torch.cuda.device_count()

    @property
    def memory_bytes(self) -> int:
        return device_memory()

    def torchrun(self, module: str, arguments: Sequence[str], *, processes: int, log: Path) -> bool:
        from pipeline.launch.processes import torchrun

        return torchrun(module, arguments, processes=processes, log=log)


THIS_MACHINE = ThisMachine()
