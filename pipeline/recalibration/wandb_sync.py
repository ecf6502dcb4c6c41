"""Weights & Biases, where a recipe asks for it: it copies what goes to TensorBoard (docs.wandb.ai, "TensorBoard")."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from foundation.install import install_hint
from pipeline.errors import RecipeError


def check_wandb(project: str | None) -> None:
    """Raises: RecipeError if a project is named and the package is not installed."""
    if project is not None and find_spec("wandb") is None:
        raise RecipeError(
            f"recalibration.wandb_project = {project!r}: the package wandb is not installed; "
            f"{install_hint('wandb')}, or take the field out (TensorBoard's files are written either way)"
        )


@contextmanager
def copied_to_wandb(project: str | None, folder: Path) -> Iterator[None]:
    """Within the block TensorBoard writers of this process also feed a run of the project; nothing without one.

    A training that is resumed goes on in the run that it began, which is known by the training's folder.
    """
    if project is None:
        yield
        return
    import wandb

    name = f"{folder.parent.name}/{folder.name}"
    run = wandb.init(
        project=project,
        name=name,
        id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
        dir=str(folder / "tensorboard"),
        resume="allow",
        sync_tensorboard=True,
        settings=wandb.Settings(console="off", silent=True),
    )
    try:
        yield
    finally:
        run.finish()
