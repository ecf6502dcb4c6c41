"""Surgery: the source without positional embeddings, cut into its tensor-parallel layout."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_surgery.shape import ModelShape
from pipeline.launch.machines import Machines
from pipeline.recipe.recipe import Recipe
from pipeline.runs.stage import Stage
from pipeline.stages.data import DataStage, tokenizer_folder

if TYPE_CHECKING:
    import torch


class SurgeryStage(Stage):
    """The layout that trainings start from; with `model.random_seed` its source is drawn here first."""

    name = "surgery"
    help = "drop the positional embeddings and cut the checkpoint into its tensor-parallel layout"

    def needs(self, recipe: Recipe) -> tuple[str, ...]:
        return (DataStage.name,) if recipe.surgery.calibrates else ()

    def config(self, recipe: Recipe) -> dict[str, Any]:
        """The settings that the whole tensors depend on: training takes a layout of any TP degree."""
        return recipe.surgery.model_dump(mode="json", exclude={"tensor_parallel"})

    def sources(self, recipe: Recipe) -> dict[str, str]:
        return model_fingerprint(recipe)

    def check_settings(self, recipe: Recipe, shape: ModelShape) -> None:
        shape.check_tensor_parallel(recipe.surgery.tensor_parallel, recipe.model.path)

    def check(self, recipe: Recipe, shape: ModelShape) -> None:
        from pipeline.recipe.random_model import check_source

        check_source(recipe)

    def run(self, recipe: Recipe, run_dir: Path, stage_dir: Path, machines: Machines) -> dict[str, Any]:
        from model_surgery import convert
        from pipeline.recipe.random_model import draw_source

        rows = calibration_rows(recipe, run_dir) if recipe.surgery.calibrates else None
        source = draw_source(recipe, tokenizer_folder(recipe))
        converted = convert.run(recipe.surgery, source=source, out_dir=stage_dir, rows=rows)
        return {
            "parameters": converted.layout.shape.parameters,
            "padding": converted.layout.shape.padding(converted.layout.tensor_parallel),
            "layout_digest": converted.layout.digest(),
            "verification": converted.verification.facts() if converted.verification else None,
            "calibration": converted.calibration.facts() if converted.calibration else None,
        }

    def disk_bytes(self, recipe: Recipe, shape: ModelShape, tokens: int) -> dict[str, int]:
        stored = 4 if shape.dtype == "float32" else 2
        drawn = {} if recipe.model.random_seed is None else {"random start": shape.parameters * stored}
        return {**drawn, "layout": shape.padded(recipe.surgery.tensor_parallel).parameters * stored}


def model_fingerprint(recipe: Recipe) -> dict[str, str]:
    """Of the source checkpoint, as a source of a stage."""
    from pipeline.recipe.random_model import source_fingerprint

    return {"model": source_fingerprint(recipe)}


def calibration_rows(recipe: Recipe, run_dir: Path) -> "torch.Tensor":
    """The first training rows as token ids, int64 [rows, row_length]."""
    import tempfile

    import torch

    from data_prep.artifact import ShardSet
    from data_prep.rows import build_rows

    count, data_dir = recipe.surgery.calibration_rows, run_dir / DataStage.name
    with tempfile.TemporaryDirectory(prefix="drope-rows-") as cache:
        shards = ShardSet.load(data_dir)
        rows = build_rows(shards, data_dir, train_rows=count, validation_rows=0, cache_dir=Path(cache)).train
        return torch.stack([rows[index]["tokens"] for index in range(count)])
