"""What the report is made from: the complete stages of a run, and only those."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results import RESULTS, Results
from eval.units import cells_of
from model_surgery.files import file_digest
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe, as_yaml
from pipeline.runs.manifest import Manifest

Metrics = list[dict[str, Any]]
"""Lines of metrics.jsonl: numbers by name, None where one was not finite, lists where there is one for every layer."""
StageNames = Callable[[Recipe], Sequence[str]]
"""Names of the stages of a recipe that a report tells of, in order."""
_TRAININGS = ("recalibration", "control")


@dataclass(frozen=True)
class Positions:
    """Validation loss in equal parts of rows of `length` tokens; None where a part has none."""

    length: int
    losses: tuple[float | None, ...]


@dataclass(frozen=True)
class RunData:
    """Everything that the page shows.

    manifests: of the complete stages, in order. results: None unless the evaluation is complete and whole.
    metrics: lines of metrics.jsonl by training stage. positions: of the last validation by training stage.
    notices: what a reader must know before believing the rest.
    """

    recipe: Recipe
    recipe_text: str
    manifests: dict[str, Manifest]
    results: Results | None
    metrics: dict[str, Metrics]
    positions: dict[str, Positions]
    notices: tuple[str, ...]


def read_run(recipe: Recipe, run: Path, stage_names: StageNames) -> RunData:
    """Raises: RecipeError if no stage is complete or a file is not the one that its stage left; EvaluationError."""
    names = stage_names(recipe)
    loaded = {name: Manifest.load(run / name) for name in names}
    manifests = {name: manifest for name, manifest in loaded.items() if manifest is not None}
    if not manifests:
        raise RecipeError(f"{run}: no stage is complete, so there is nothing to report; start with drope run")
    notices = []
    if unfinished := [name for name in names if name not in manifests]:
        notices.append(f"Not complete and therefore left out: {', '.join(unfinished)}.")
    notices += broken_lineage(manifests)
    results = None
    if "evaluation" in manifests:
        require_unchanged(run / "evaluation", manifests["evaluation"], RESULTS)
        results = Results.load(run / "evaluation")
        notices += [f"{name} was asked for and left out: {lack}." for name, lack in results.left_out.items()]
        if missing := missing_scores(results):
            notices.append(
                f"The evaluation is partial and therefore left out: {len(missing)} scores are missing, "
                f"the first is {missing[0]}."
            )
            results = None
    trainings = [name for name in _TRAININGS if name in manifests]
    positions = {name: read_positions(run / name, manifests[name]) for name in trainings}
    written = run / "recipe.yaml"
    return RunData(
        recipe=recipe,
        recipe_text=written.read_text(encoding="utf-8") if written.is_file() else as_yaml(recipe),
        manifests=manifests,
        results=results,
        metrics={name: read_training(run / name, manifests[name]) for name in trainings},
        positions={name: losses for name, losses in positions.items() if losses is not None},
        notices=tuple(notices),
    )


def read_training(folder: Path, manifest: Manifest) -> Metrics:
    """The lines of a complete training's metrics.jsonl."""
    from pipeline.recalibration.metrics import METRICS_FILE, read_metrics  # loads torch

    require_unchanged(folder, manifest, METRICS_FILE)
    return read_metrics(folder)


def read_positions(folder: Path, manifest: Manifest) -> Positions | None:
    """Of the last line of a complete training's validation.jsonl; None where an earlier version has left none."""
    from pipeline.recalibration.metrics import VALIDATION_FILE, read_validation  # loads torch

    if not any(output.path == VALIDATION_FILE for output in manifest.outputs):
        return None
    require_unchanged(folder, manifest, VALIDATION_FILE)
    ((length, losses),) = read_validation(folder)[-1]["by_position"].items()
    return Positions(int(length), tuple(losses))


def require_unchanged(folder: Path, manifest: Manifest, name: str) -> None:
    """Raises: RecipeError if the file is not, byte by byte, the one that the stage recorded."""
    recorded = {output.path: output.sha256 for output in manifest.outputs}
    path = folder / name
    if not path.is_file() or recorded.get(name) != file_digest(path):
        raise RecipeError(f"{path}: gone or changed since the stage was complete; remove {folder} to run it again")


def missing_scores(results: Results) -> list[str]:
    """The scores that the evaluation's configuration asks for and that it has not, as 'recall of yarn at 4x'.

    One of fewer samples than are asked for counts as missing.
    """
    config = results.config
    samples = {"recall": config.recall.samples} if config.recall else {}
    samples |= dict.fromkeys(config.niah.tasks, config.niah.samples) if config.niah else {}
    asked_for = [(unit.task, variant, unit.factor) for variant, unit in cells_of(config, config.variants)]
    scored = {
        (score.task, score.variant, score.context_factor)
        for score in results.scores
        if score.samples >= samples.get(score.task, 1)
    }
    return [
        f"{task} of {variant} at {factor}x"
        for task, variant, factor in asked_for
        if (task, variant, factor) not in scored
    ]


def broken_lineage(manifests: dict[str, Manifest]) -> list[str]:
    """One sentence for every stage that was made from another version of a stage than the one that is here."""
    return [
        f"Stage {name} was made from another {source} than the one in this run; its numbers belong to that one."
        for name, manifest in manifests.items()
        for source, digest in manifest.inputs.items()
        if source in manifests and manifests[source].digest != digest
    ]
