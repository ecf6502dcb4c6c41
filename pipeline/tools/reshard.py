"""`drope reshard`: a layout or a training checkpoint for another number of tensor-parallel ranks."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation.full_disk import explained_full_disk
from model_surgery.layout import LAYOUT_FILE
from model_surgery.reshard import reshard as reshard_layout
from pipeline.errors import RecipeError
from pipeline.recalibration.checkpoints.folders import name_of
from pipeline.recalibration.checkpoints.reshard import write_portable
from pipeline.recalibration.checkpoints.sources import open_source
from pipeline.recalibration.checkpoints.state import STATE_FILE
from pipeline.runs.folder import RECIPE_FILE


def reshard(path: Path, *, tensor_parallel: int, out_dir: Path) -> str:
    """Writes what is at `path` to `out_dir`, cut for `tensor_parallel` ranks; says what it wrote.

    Raises: RecipeError, SurgeryError or DiskError on bad input; then `out_dir` is as it was.
    """
    refuse_place(path, out_dir)
    if (path / LAYOUT_FILE).is_file():
        with new_folder(out_dir):
            reshard_layout(path, tensor_parallel=tensor_parallel, out_dir=out_dir)
        return f"layout for TP {tensor_parallel}: {out_dir}"
    if not is_checkpoint(path):
        raise RecipeError(
            f"{path}: neither a layout ({LAYOUT_FILE}) nor a training checkpoint; those of a run are its surgery and "
            "recalibration/layout folders and recalibration/checkpoints/step-XXXXXXXX"
        )
    source = open_source(path)
    refuse_unseen(out_dir, source.state.step)
    with new_folder(out_dir):
        state = write_portable(source, out_dir, tensor_parallel=tensor_parallel)
    return f"training checkpoint of step {state.step:,} for TP {tensor_parallel}: {out_dir}"


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is, or was to become, a training checkpoint."""
    return (path / STATE_FILE).is_file() or any(path.glob("*_model_states.pt")) or path.name.startswith("step-")


def refuse_place(path: Path, out_dir: Path) -> None:
    """Raises: RecipeError if `path` is no folder, or `out_dir` is not free or lies within it."""
    if not path.is_dir():
        raise RecipeError(f"{path}: no such folder")
    if path.resolve() in (out_dir.resolve(), *out_dir.resolve().parents):
        raise RecipeError(f"--out {out_dir}: is, or lies within, the folder that is read; choose another")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise RecipeError(f"--out {out_dir}: is there already and not an empty folder; choose another")


def refuse_unseen(out_dir: Path, step: int) -> None:
    """Raises: RecipeError if a checkpoint is meant for a run that would not find it, or does not exist yet."""
    if out_dir.parent.name != "checkpoints":
        return
    if out_dir.name != name_of(step):
        raise RecipeError(f"--out {out_dir}: a run finds it under the name of its step only: {name_of(step)}")
    run = out_dir.resolve().parents[2]
    if not (run / RECIPE_FILE).is_file():
        raise RecipeError(
            f"--out {out_dir}: {run} is not the folder of a run yet; begin the run by drope surgery RECIPE "
            f"name={run.name} surgery.tensor_parallel=N"
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """A folder to be filled; if that fails it is as before, and so are the folders above it.

    Raises: DiskError if the disk is full.
    """
    absent = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        with explained_full_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            yield
    except BaseException:
        for child in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        for new in absent:
            if new.is_dir():
                new.rmdir()
        raise
