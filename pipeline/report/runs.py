"""Runs that are compared, read from their folders, and what a reader asks first about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.config import Variant
from eval.results import Results
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import load_recipe
from pipeline.report.claims import our_variant
from pipeline.report.inputs import RunData, StageNames, read_run
from pipeline.report.measures import Measure, measure
from pipeline.report.numbers import count
from pipeline.report.variants import LOOKS


@dataclass(frozen=True)
class Run:
    """A run that is compared. variant: the form of DroPE that stands for it, chosen by configuration."""

    name: str
    folder: Path
    data: RunData
    results: Results
    variant: Variant

    def measure(self, name: str, metric: str | None = None) -> Measure:
        return measure(self.results, name, metric)


def read_runs(folders: Sequence[Path], stage_names: StageNames) -> list[Run]:
    """The runs in their folders. Raises: RecipeError for fewer than two, one given twice, or one without scores."""
    if len(folders) < 2:
        raise RecipeError(f"--compare takes the folders of two runs or more, not {len(folders)}")
    whole = [folder.resolve() for folder in folders]
    if twice := [folder for place, folder in enumerate(whole) if folder in whole[:place]]:
        raise RecipeError(f"{twice[0]}: is given twice")
    read = [read_one(folder, stage_names) for folder in folders]
    names = [data.recipe.name for data, _ in read]
    return [
        Run(name if names.count(name) == 1 else str(folder), folder, data, results, variant_of(folder, results))
        for folder, name, (data, results) in zip(folders, names, read, strict=True)
    ]


def read_one(folder: Path, stage_names: StageNames) -> tuple[RunData, Results]:
    """What the run's folder holds. Raises: RecipeError where it is no run, or has no whole evaluation."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise RecipeError(f"{folder}: no folder of a run (it has no recipe.yaml); give the folders that drope run made")
    data = read_run(load_recipe(recipe), folder, stage_names)
    if data.results is None:
        raise RecipeError(f"{folder}: its evaluation is not complete; run drope evaluate {recipe}")
    return data, data.results


def variant_of(folder: Path, results: Results) -> Variant:
    """Raises: RecipeError where no DroPE was scored."""
    variant = our_variant(results)
    if variant is None:
        raise RecipeError(f"{folder}: no DroPE was scored; add drope to evaluation.variants and evaluate again")
    return variant


def key_facts(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Name, a value for every run, and whether they differ."""
    facts = [facts_of(run) for run in runs]
    return [(name, [fact[name] for fact in facts], len({fact[name] for fact in facts}) > 1) for name in facts[0]]


def facts_of(run: Run) -> dict[str, str]:
    """What a reader asks first about a run."""
    recipe, manifests = run.data.recipe, run.data.manifests
    training = recipe.recalibration
    trained: dict[str, Any] = manifests["recalibration"].facts if "recalibration" in manifests else {}
    return {
        "Model": recipe.model.path if recipe.model.random_seed is None else f"{recipe.model.path}, random weights",
        "Evaluated": f"{manifests['evaluation'].finished:%Y-%m-%d %H:%M} UTC",
        "Scored as": LOOKS[run.variant].label,
        "Context": f"{run.results.training_length:,} tokens",
        "Tokens": count(trained.get("tokens")),
        "Steps": count(trained.get("steps")),
        "Learning rate": f"{training.lr:g} {training.schedule.kind}",
        "Batch": f"{training.batch:,} rows of {recipe.data.row_length:,}",
        "Position embedding": training.position_embedding,
        "Softmax scale c": f"{run.results.config.softmax_scale_c:g}",
        "Seed of evaluation": str(run.results.config.seed),
    }
