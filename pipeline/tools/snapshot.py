"""`drope export --step`: a checkpoint of a training, which may still be under way, as a Hugging Face folder."""

import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from model_surgery import export
from pipeline.errors import RecipeError
from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.checkpoints.reshard import write_part
from pipeline.recalibration.checkpoints.sources import open_source
from pipeline.recalibration.checkpoints.state import WEIGHTS
from pipeline.recalibration.metrics.comparable import comparable_metrics
from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.recipe import Recipe
from pipeline.runs.manifest import Manifest
from pipeline.stages.data import tokenizer_folder


def export_step(recipe: Recipe, step: str) -> Path:
    """Writes the weights of a training checkpoint to snapshots/step-XXXXXXXX in the run's folder; returns that.

    `step`: a number, "newest", or "best" (the lowest validation loss of those that have a checkpoint). The run's stages
    know nothing of it, and the training may go on meanwhile.

    Raises: RecipeError if there is no such checkpoint, or the snapshot is there already; SurgeryError.
    """
    training = recipe.folder / "recalibration"
    checkpoint = find_checkpoint(training, step)
    out_dir = recipe.folder / "snapshots" / checkpoint.name
    if out_dir.exists():
        raise RecipeError(f"{out_dir}: is there already; remove it to export the step again")
    out_dir.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out_dir.parent) as scratch:
        layout, model = Path(scratch) / "layout", Path(scratch) / "model"
        try:
            write_part(open_source(checkpoint), WEIGHTS, layout, tensor_parallel=1)
        except (OSError, RecipeError) as error:
            if checkpoint.is_dir():
                raise
            raise RecipeError(
                f"{checkpoint}: the training has removed it meanwhile; take a newer one, or keep some by "
                "recalibration.keep_every"
            ) from error
        export.run(
            recipe.export,
            layout_dir=layout,
            source=resolve_model(recipe.model),
            tokenizer=tokenizer_folder(recipe),
            out_dir=model,
            export_check=None,  # only the end of a training leaves one
        )
        shutil.rmtree(layout)
        model.rename(out_dir)
    return out_dir


def find_checkpoint(training: Path, step: str) -> Path:
    """The complete checkpoint of a training that `step` names.

    Raises: RecipeError if there is none.
    """
    checkpoints = {folders.step_of(path): path for path in folders.complete(training / "checkpoints")}
    if not checkpoints:
        done = Manifest.load(training) is not None
        hint = "its end is exported by the export stage" if done else "wait for the first, or train"
        raise RecipeError(f"{training / 'checkpoints'}: holds no complete checkpoint; {hint}")
    if step == "newest":
        return checkpoints[max(checkpoints)]
    if step == "best":
        return checkpoints[best_step(training, checkpoints)]
    if not step.isdecimal() or int(step) not in checkpoints:
        steps = ", ".join(map(str, checkpoints))
        raise RecipeError(f"--step {step}: there are complete checkpoints of {steps}; or say newest or best")
    return checkpoints[int(step)]


def best_step(training: Path, steps: Collection[int]) -> int:
    """Of these steps the one of the lowest validation loss.

    Raises: RecipeError if none of them was validated.
    """
    lines = comparable_metrics(training)
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    scored = [(loss, step) for step in steps if (loss := losses.get(step)) is not None]
    if not scored:
        raise RecipeError(f"{training}: no step that has a checkpoint was validated; see recalibration.keep_best")
    return min(scored)[1]
