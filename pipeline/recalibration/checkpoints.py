"""Training checkpoints by DeepSpeed, or portable ones: complete or invisible, resumed from the newest complete one."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model_surgery.files import write_json
from pipeline.recalibration.portable import adopt_history, forget_history
from pipeline.recalibration.state import STATE_FILE, DeepSpeedState, PortableState, read_state

if TYPE_CHECKING:
    import deepspeed

_MARKER = "complete"


def save(engine: "deepspeed.DeepSpeedEngine", folder: Path, state: DeepSpeedState, keep: int) -> None:
    """Saves weights, optimizer and step from all ranks; the marker is written after every rank is done."""
    tag = name_of(state.step)
    engine.save_checkpoint(str(folder), tag=tag, client_state={"step": state.step}, save_latest=False)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        write_json(folder / tag / STATE_FILE, state.model_dump(mode="json"))
        mark_complete(folder / tag)
        for old in complete(folder)[:-keep]:
            (old / _MARKER).unlink()
            shutil.rmtree(old)
    torch.distributed.barrier()


def resume(engine: "deepspeed.DeepSpeedEngine", folder: Path) -> int:
    """Loads the newest complete checkpoint, removes incomplete ones; returns its step, 0 if there is none.

    For a portable one the engine must have been built from its weights (`portable.starting_layout`).
    """
    found, is_first = newest(folder), torch.distributed.get_rank() == 0
    if is_first:
        remove_incomplete(folder)
    torch.distributed.barrier()
    if found is None:
        if is_first:
            forget_history(folder.parent)
        return 0
    state = read_state(found)
    if isinstance(state, PortableState):
        from pipeline.recalibration.restore import restore

        restore(engine, found, state)
        if is_first:
            adopt_history(found, folder.parent)
        return state.step
    _, client_state = engine.load_checkpoint(str(folder), tag=found.name)
    return client_state["step"]


def name_of(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    found = complete(folder)
    return found[-1] if found else None


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{_MARKER}"))


def remove_incomplete(folder: Path) -> None:
    """Removes what a killed save has left."""
    for leftover in set(folder.glob("step-*")) - set(complete(folder)):
        shutil.rmtree(leftover)


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / _MARKER).is_file()


def mark_complete(checkpoint: Path) -> None:
    """Makes a checkpoint visible once all its bytes are on disk."""
    sync_tree(checkpoint)
    (checkpoint / _MARKER).touch()


def sync_tree(folder: Path) -> None:
    """Forces every file below `folder` to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
