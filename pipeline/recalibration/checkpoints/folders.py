"""The folder of a training's checkpoints: their names, which are complete, which are kept."""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from foundation.files import sync_file, sync_folder

_MARKER = "complete"
_NAME = re.compile(r"step-(\d+)")
_DAMAGED = "damaged-"


def name_of(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def partial_name(step: int) -> str:
    """Name of the folder while the checkpoint is written; no reader looks for it."""
    return f".{name_of(step)}.partial"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint}: not named as a checkpoint is (step-00000500)")
    return int(match[1])


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / _MARKER).is_file()


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    marked = (path.parent for path in folder.glob(f"step-*/{_MARKER}"))
    return sorted(path for path in marked if _NAME.fullmatch(path.name))


def mark_complete(checkpoint: Path) -> None:
    """Marks a checkpoint once all its bytes are on disk."""
    sync_tree(checkpoint)
    (checkpoint / _MARKER).touch()
    sync_folder(checkpoint)


def sync_tree(folder: Path) -> None:
    """Forces every file below `folder` to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)


def publish(folder: Path, step: int) -> Path:
    """Gives a step's written files their mark and then their name: from now on they are a checkpoint."""
    partial, final = folder / partial_name(step), folder / name_of(step)
    mark_complete(partial)
    if final.exists():
        remove(final)
    os.replace(partial, final)
    sync_folder(folder)
    return final


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint, its mark first, so that a kill leaves none that looks complete."""
    (checkpoint / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def remove_incomplete(folder: Path) -> None:
    """Removes what a killed save, or a killed removal, has left."""
    for leftover in {*folder.glob("step-*"), *folder.glob(".step-*")} - set(complete(folder)):
        shutil.rmtree(leftover)


def set_aside(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint, so that nothing goes on from it but it can be looked at; one is kept."""
    for older in checkpoint.parent.glob(f"{_DAMAGED}*"):
        shutil.rmtree(older)
    aside = checkpoint.with_name(f"{_DAMAGED}{checkpoint.name}")
    os.replace(checkpoint, aside)
    return aside


def kept(steps: Iterable[int], *, newest: int, every: int | None, best: int | None) -> set[int]:
    """Of the steps that have a checkpoint those to keep: the newest ones, every so many steps, and the best one."""
    ordered = sorted(steps)
    return {step for step in ordered if step in ordered[-newest:] or (every and step % every == 0) or step == best}
