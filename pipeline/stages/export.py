"""Export: trained weights as Hugging Face folders."""

from pathlib import Path
from typing import Any

from model_surgery.shape import ModelShape
from pipeline.launch.machines import Machines
from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.recipe import Recipe
from pipeline.runs.stage import Stage
from pipeline.stages.data import tokenizer_folder
from pipeline.stages.training import ControlStage, RecalibrationStage, trained_shape, trainings_of

DROPE_EXPORT, CONTROL_EXPORT = "drope", "control"
"""Folders below export/ of the recalibrated model and of the control."""
SCALED_EXPORT = "drope-scaled"
"""Folder below export/ of the model with export.softmax_scale; evaluation needs export/drope without any."""


class ExportStage(Stage):
    """One folder for each exported model."""

    name = "export"
    help = "write the trained weights as a Hugging Face folder for stock transformers"

    def needs(self, recipe: Recipe) -> tuple[str, ...]:
        return trainings_of(recipe)

    def config(self, recipe: Recipe) -> dict[str, Any]:
        return recipe.export.model_dump(mode="json")

    def check_settings(self, recipe: Recipe, shape: ModelShape) -> None:
        from model_surgery.export.formats import format_of

        # Now, not when training is over.
        format_of(trained_shape(recipe, shape), recipe.recalibration.position_embedding, recipe.export)

    def run(self, recipe: Recipe, run_dir: Path, stage_dir: Path, machines: Machines) -> dict[str, Any]:
        from model_surgery import export

        unscaled = recipe.export.model_copy(update={"softmax_scale": None})
        return {
            name: export.run(
                recipe.export if name == SCALED_EXPORT else unscaled,
                layout_dir=run_dir / training / "layout",
                source=resolve_model(recipe.model),
                tokenizer=tokenizer_folder(recipe),
                out_dir=stage_dir / name,
                export_check=run_dir / training / "probe.safetensors",
            )
            for name, training in exported_models(recipe).items()
        }

    def disk_bytes(self, recipe: Recipe, shape: ModelShape, tokens: int) -> dict[str, int]:
        value = 4 if recipe.export.dtype == "float32" else 2
        return {"export": len(exported_models(recipe)) * shape.parameters * value}


def exported_models(recipe: Recipe) -> dict[str, str]:
    """Folder below export/ of every exported model, and the training stage that it comes from."""
    models = {DROPE_EXPORT: RecalibrationStage.name}
    if recipe.export.softmax_scale:
        models[SCALED_EXPORT] = RecalibrationStage.name
    return models | ({CONTROL_EXPORT: ControlStage.name} if recipe.recalibration.control else {})
