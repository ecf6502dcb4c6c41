"""Report: one page about the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_surgery.shape import ModelShape
from pipeline.launch.machines import Machines
from pipeline.recipe.recipe import Recipe
from pipeline.runs.stage import Stage
from pipeline.stages.evaluation import EvaluationStage
from pipeline.stages.training import trainings_of


class ReportStage(Stage):
    """The page shows all stages before it that are complete."""

    name = "report"
    help = "write one HTML page with the run's plots, tables and lineage"

    def __init__(self, reported: Sequence[Stage]) -> None:
        """reported: the stages that the page tells of, in order."""
        self._reported = reported

    def reported(self, recipe: Recipe) -> list[str]:
        """Names of the recipe's stages that the page tells of, in order."""
        return [stage.name for stage in self._reported if stage.applies_to(recipe)]

    def needs(self, recipe: Recipe) -> tuple[str, ...]:
        return (*trainings_of(recipe), EvaluationStage.name)

    def config(self, recipe: Recipe) -> dict[str, Any]:
        return recipe.report.model_dump(mode="json")

    def sources(self, recipe: Recipe) -> dict[str, str]:
        from model_surgery.files import fingerprint_files

        path = recipe.report.published
        if path is None:
            return {}
        return {"published": fingerprint_files([path]) if path.is_file() else "no such file"}

    def check_settings(self, recipe: Recipe, shape: ModelShape) -> None:
        from pipeline.report.published import published_rows

        published_rows(recipe)

    def run(self, recipe: Recipe, run_dir: Path, stage_dir: Path, machines: Machines) -> dict[str, Any]:
        from pipeline.report.page import write_report

        page = write_report(recipe, run_dir, stage_dir, self.reported)
        return {"page": str(page.relative_to(run_dir))}
