"""Training checkpoints by DeepSpeed: complete or invisible, resumed from the newest complete one."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import deepspeed

_MARKER = "complete"


def save(engine: "deepspeed.DeepSpeedEngine", folder: Path, step: int, keep: int) -> None:
    """Saves weights, optimizer and step from all ranks; the marker is written after every rank is done."""
    tag = f"step-{step:08d}"
    engine.save_checkpoint(str(folder), tag=tag, client_state={"step": step}, save_latest=False)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        sync_tree(folder / tag)
        (folder / tag / _MARKER).touch()
        for old in complete(folder)[:-keep]:
            (old / _MARKER).unlink()
            shutil.rmtree(old)
    torch.distributed.barrier()


def resume(engine: "deepspeed.DeepSpeedEngine", folder: Path) -> int:
    """Loads the newest complete checkpoint, removes incomplete ones; returns its step, 0 if there is none."""
    found = complete(folder)
    if torch.distributed.get_rank() == 0:
        remove_incomplete(folder)
    torch.distributed.barrier()
    if not found:
        return 0
    _, state = engine.load_checkpoint(str(folder), tag=found[-1].name)
    return state["step"]


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{_MARKER}"))


def remove_incomplete(folder: Path) -> None:
    """Removes what a killed save has left."""
    for leftover in set(folder.glob("step-*")) - set(complete(folder)):
        shutil.rmtree(leftover)


def sync_tree(folder: Path) -> None:
    """Forces every file below `folder` to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
