"""The stages of a run, in order. A stage that is added is a file beside this one, and a line here."""

from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe
from pipeline.runs.stage import Stage
from pipeline.stages.data import DataStage
from pipeline.stages.evaluation import EvaluationStage
from pipeline.stages.export import ExportStage
from pipeline.stages.report import ReportStage
from pipeline.stages.surgery import SurgeryStage
from pipeline.stages.training import ControlStage, RecalibrationStage

REPORTED: tuple[Stage, ...] = (
    DataStage(),
    SurgeryStage(),
    RecalibrationStage(),
    ControlStage(),
    ExportStage(),
    EvaluationStage(),
)
REPORT = ReportStage(REPORTED)
STAGES: tuple[Stage, ...] = (*REPORTED, REPORT)


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages that this recipe has, in order."""
    return [stage for stage in STAGES if stage.applies_to(recipe)]


def stage_named(name: str) -> Stage:
    """Raises: RecipeError if there is no such stage."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise RecipeError(f"{name}: no such stage; stages are {', '.join(stage.name for stage in STAGES)}")
