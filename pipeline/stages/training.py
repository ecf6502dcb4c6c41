"""Trainings: the recalibration without positional embeddings, and beside it the control with RoPE kept."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError
from pipeline.launch.machines import Machines
from pipeline.recalibration.checkpoints.folders import complete, step_of
from pipeline.recalibration.layer_choice import LayerChoice, choose
from pipeline.recalibration.schedule import check_schedule
from pipeline.recalibration.wandb_sync import check_wandb
from pipeline.recipe.recalibration import OPERATIONAL
from pipeline.recipe.recipe import Recipe
from pipeline.runs.stage import Stage
from pipeline.stages.data import DataStage
from pipeline.stages.surgery import SurgeryStage


class TrainingStage(Stage):
    """A training from the surgery's layout on the data's rows."""

    resumes = True
    scratch = ("checkpoints", "tensorboard", "row-index")
    spans_nodes = True

    @abstractmethod
    def position_embedding(self, recipe: Recipe) -> Literal["none", "rope"]:
        """What the model has in the end."""

    def needs(self, recipe: Recipe) -> tuple[str, ...]:
        return (DataStage.name, SurgeryStage.name)

    def config(self, recipe: Recipe) -> dict[str, Any]:
        """The settings that the trained weights depend on: ranks may change, a control be added, disk be freed."""
        return recipe.recalibration.model_dump(mode="json", exclude=set(OPERATIONAL))

    def check_settings(self, recipe: Recipe, shape: ModelShape) -> None:
        check_schedule(recipe.recalibration, recipe.data.row_length)
        layer_choice(recipe, shape)
        check_wandb(recipe.recalibration.wandb_project)

    def check_machines(self, recipe: Recipe, machines: Machines) -> None:
        check_gpus(recipe, machines.slots)

    def run(self, recipe: Recipe, run_dir: Path, stage_dir: Path, machines: Machines) -> dict[str, Any]:
        from pipeline.recalibration.run import run as train

        return train(
            recipe.recalibration,
            self.position_embedding(recipe),
            tensor_parallel=recipe.surgery.tensor_parallel,
            shards=run_dir / DataStage.name,
            layout=run_dir / SurgeryStage.name,
            out_dir=stage_dir,
            machines=machines,
        )

    def progress(self, stage_dir: Path) -> int:
        """Step of the newest checkpoint."""
        checkpoints = complete(stage_dir / "checkpoints")
        return step_of(checkpoints[-1]) if checkpoints else 0

    def disk_bytes(self, recipe: Recipe, shape: ModelShape, tokens: int) -> dict[str, int]:
        """Checkpoints hold weights, and fp32 masters and moments."""
        training = recipe.recalibration
        value = 4 if training.dtype == "fp32" else 2
        return {
            "checkpoints": training.keep_checkpoints * shape.parameters * (value + 12),
            "trained layout": shape.parameters * 4,
        }


class RecalibrationStage(TrainingStage):
    """The training that DroPE is about."""

    name = "recalibration"
    help = "train without positional embeddings at the original context length"

    def position_embedding(self, recipe: Recipe) -> Literal["none", "rope"]:
        return recipe.recalibration.position_embedding


class ControlStage(TrainingStage):
    """The same training with RoPE kept, on the same rows."""

    name = "control"
    help = "train the same model with RoPE kept on the same rows, for comparison"

    def applies_to(self, recipe: Recipe) -> bool:
        return recipe.recalibration.control

    def position_embedding(self, recipe: Recipe) -> Literal["none", "rope"]:
        return "rope"


def trainings_of(recipe: Recipe) -> tuple[str, ...]:
    """Names of the recipe's trainings, in order."""
    return (RecalibrationStage.name, *((ControlStage.name,) if recipe.recalibration.control else ()))


def layer_choice(recipe: Recipe, shape: ModelShape) -> LayerChoice:
    """What training would compute with on this machine's GPU, or without one on a GPU that is assumed.

    Raises: RecipeError if the recipe asks for what cannot be had there.
    """
    from pipeline.recalibration.layer_agreement import device_to_plan_for

    return choose(recipe.recalibration, shape, recipe.data.row_length, device_to_plan_for())


def trained_shape(recipe: Recipe, shape: ModelShape) -> ModelShape:
    """The shape of the model that training ends with, of a source of this `shape`.

    Raises: SurgeryError if norms of queries and keys are to be put in where there are some already.
    """
    from model_surgery.qk_norm import with_qk_norm

    path, training = recipe.model.path, recipe.recalibration
    begun = with_qk_norm(shape, recipe.surgery.qk_norm, path)
    return with_qk_norm(begun, training.drop_qk_norm, path, field="recalibration.drop_qk_norm")


def check_gpus(recipe: Recipe, gpus: int) -> None:
    """Raises: RecipeError if there are GPUs, but fewer than the training has processes."""
    ranks = recipe.recalibration.data_parallel
    processes = recipe.surgery.tensor_parallel * (1 if ranks == "auto" else ranks)
    if 0 < gpus < processes:
        raise RecipeError(
            f"surgery.tensor_parallel x recalibration.data_parallel = {processes} processes: there are {gpus} GPUs "
            "here; lower data_parallel"
        )
