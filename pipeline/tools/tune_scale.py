"""`drope tune-scale`: the softmax scale of a run's exported model, and models that carry it."""

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eval.models import read_config
from eval.tuning.head_scales import LEARNING_RATE, TrainedHeads, scaled_parts, train_heads
from eval.tuning.softmax_scale import ScaleResults, load_model, prepare_tuning, tune
from foundation.files import write_text
from model_surgery import export
from model_surgery.softmax_scale import SoftmaxScale
from pipeline.errors import RecipeError
from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.recipe import Recipe
from pipeline.report.scale_plot import scale_plot
from pipeline.runs.folder import explained_full_run_disk, is_complete
from pipeline.stages.data import tokenizer_folder
from pipeline.stages.evaluation import evaluated_models
from pipeline.stages.export import exported_models
from pipeline.stages.order import stage_named

log = logging.getLogger(__name__)

FOLDER = "softmax-scale"
Apply = Literal["weights", "config"]


@dataclass(frozen=True)
class Tuned:
    """What was found and written. models: folders of exports that carry a scale."""

    scale: ScaleResults
    heads: TrainedHeads | None
    models: tuple[Path, ...]


def tune_scale(
    recipe: Recipe,
    *,
    factors: tuple[float, ...] = (),
    apply: Apply = "weights",
    per_head: bool = False,
    steps: int = 20,
    tokens: int = 16_384,
    samples: int = 64,
) -> Tuned:
    """Tunes the softmax scale of the run's export; writes scale.json, scale.csv and scale.svg to softmax-scale/.

    factors: for each a model with the fitted scale for that many times the context, model-Sx. per_head: also scales of
    single heads at the largest of these, or at the longest evaluated length: heads.json, model-heads-Sx. tokens,
    samples: what a scale is judged by, see `eval.tuning.softmax_scale.prepare_tuning`.

    Raises: RecipeError unless data and export are complete; EvaluationError before anything is written for what cannot
    be tuned, later for a factor at which 1 + c ln s is no scale; SurgeryError.
    """
    require(recipe, "data", "export")
    models, longest = evaluated_models(recipe, recipe.folder), recipe.evaluation.context_factors[-1]
    aim = max(factors, default=longest)
    head_length = round(aim * context_of(models.source)) if per_head else None
    tuning = prepare_tuning(recipe.evaluation, models, tokens=tokens, samples=samples, head_length=head_length)
    model = load_model(tuning, models, max(aim, longest))
    if per_head:
        scaled_parts(model)
    out_dir = recipe.folder / FOLDER
    out_dir.mkdir(parents=True, exist_ok=True)
    with explained_full_run_disk(out_dir):
        scale = tune(tuning, models, model)
        scale.save(out_dir)
        write_text(out_dir / "scale.svg", scale_plot(scale).svg)
        folders = write_scaled_models(recipe, out_dir, scale, factors, apply)
        heads = None
        if per_head:
            start = next((length.beta for length in scale.lengths if length.factor == aim), None) or scale.beta(aim)
            heads = train_heads(tuning, model, factor=aim, start=start, steps=steps, learning_rate=LEARNING_RATE)
            heads.save(out_dir)
            folders.append(write_model(recipe, out_dir / f"model-heads-{aim:g}x", None, heads.scales))
    return Tuned(scale, heads, tuple(folders))


def write_scaled_models(
    recipe: Recipe, out_dir: Path, scale: ScaleResults, factors: tuple[float, ...], apply: Apply
) -> list[Path]:
    """For each factor a model with the fitted scale.

    Raises: EvaluationError for a factor at which 1 + c ln s is no scale, before any model is written.
    """
    betas = {factor: scale.beta(factor) for factor in factors}
    return [
        write_model(recipe, out_dir / f"model-{factor:g}x", scale_of(scale.c, factor, beta, apply))
        for factor, beta in betas.items()
    ]


def require(recipe: Recipe, *names: str) -> None:
    """Raises: RecipeError if one of these stages is not complete with the recipe's settings."""
    for name in names:
        if not is_complete(stage_named(name), recipe):
            raise RecipeError(
                f"tune-scale needs stage {name}, which is not complete in {recipe.folder}; run "
                "the recipe up to its export first"
            )


def context_of(source: Path) -> int:
    """The training length, tokens."""
    return read_config(source).max_position_embeddings


def scale_of(c: float, factor: float, beta: float, apply: Apply) -> SoftmaxScale:
    """The scale as the export takes it: by its formula, or where c is below zero, which that refuses, by beta."""
    if c < 0:
        return SoftmaxScale(beta=beta, apply=apply)
    return SoftmaxScale(factor=factor, c=c, apply=apply)


def write_model(recipe: Recipe, out_dir: Path, scale: SoftmaxScale | None, head_scales: Any = None) -> Path:
    """The run's export with a scale, in place of what is in `out_dir`; nothing there changes if it fails."""
    training = recipe.folder / exported_models(recipe)["drope"]
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out_dir.parent) as scratch:
        model = Path(scratch) / "model"
        export.run(
            recipe.export.model_copy(update={"softmax_scale": scale}),
            layout_dir=training / "layout",
            source=resolve_model(recipe.model),
            tokenizer=tokenizer_folder(recipe),
            out_dir=model,
            export_check=training / "probe.safetensors" if head_scales is None else None,
            head_scales=head_scales,
        )
        if out_dir.exists():
            shutil.rmtree(out_dir)
        model.rename(out_dir)
    return out_dir


def summary(tuned: Tuned) -> str:
    """What was found, as lines to read, and the recipe's lines that use it."""
    scale = tuned.scale
    judged_by = (
        f"the answers of needle samples of seed {scale.seed}"
        if scale.judged_by == "needles"
        else "held-out text that the evaluation does not score"
    )
    columns = (f"{'length':>14}", f"{'rows':>5}", f"{'best beta':>16}", f"{'at 1':>8}", f"{'at best':>8}")
    lines = [
        f"loss (nats per token) on {judged_by}; +/- is a standard error",
        " ".join([*columns, f"{'1 + c ln s':>11}", f"{'there':>8}", " gain"]),
    ]
    for one in scale.lengths:
        lines.append(
            f"{f'{one.factor}x = {one.length:,}':>14} {one.rows:>5} {pm(one.beta, one.beta_error, 3):>16} "
            f"{one.loss_plain:>8.4f} {one.loss_tuned:>8.4f} {one.fitted_beta:>11.3f} {one.loss_fitted:>8.4f}  "
            f"{pm(one.gain, one.gain_error, 4)}"
        )
    lines.append(f"beta = 1 + c ln s: c = {scale.c:.4f}, standard error {errors(scale)}")
    return "\n".join([*lines, *(head_lines(tuned.heads) if tuned.heads else []), *recipe_lines(scale)])


def errors(scale: ScaleResults) -> str:
    """c's standard errors in words."""
    estimates = {
        "over draws of rows": scale.c_error,
        "by the distances of the betas to this line": scale.c_residual_error,
    }
    known = [f"{error:.4f} {how}" for how, error in estimates.items() if error is not None]
    return ", ".join(known) if known else "unknown: a single row, a single length"


def pm(value: float, error: float | None, digits: int) -> str:
    """A value with its standard error."""
    return f"{value:.{digits}f}" + ("" if error is None else f" +/- {error:.{digits}f}")


def head_lines(heads: TrainedHeads) -> list[str]:
    """What scales per head did."""
    every = [scale for layer in heads.scales for scale in layer]
    lines = [f"per head at {heads.factor:g}x: {heads.start:.3f} became {min(every):.3f} to {max(every):.3f}"]
    names = {"text": "held-out text that was not trained on", "needles": "needle answers"}
    lines += [
        f"    loss on {names[check.on]} ({check.rows} rows): {check.before:.4f} -> {check.after:.4f}"
        for check in heads.checks
    ]
    if all(check.on != "text" for check in heads.checks):
        lines.append("    no held-out text is left to check them on")
    return lines


def recipe_lines(scale: ScaleResults) -> list[str]:
    """Lines for the recipe."""
    if scale.c <= 0:
        return ["recipe: c is not above zero, sharper attention does not help; leave evaluation.softmax_scale_c at 0"]
    longest = scale.lengths[-1].factor
    return [
        "recipe:",
        f"    evaluation: {{softmax_scale_c: {scale.c:.4g}}}",
        f"    export: {{softmax_scale: {{factor: {longest}, c: {scale.c:.4g}}}}}    # for {longest}x",
    ]
