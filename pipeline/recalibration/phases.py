"""What model is trained at which step: one all along, or with RoPE up to `drop_at_step` and without it from there."""

from dataclasses import dataclass
from typing import Literal

from model_surgery.layout import Layout
from model_surgery.qk_norm import with_qk_norm
from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError
from pipeline.recalibration.checkpoints.state import State
from pipeline.recipe.recalibration import RecalibrationConfig


@dataclass(frozen=True)
class Phase:
    """Steps `first` to `last` train this model."""

    position_embedding: Literal["none", "rope"]
    shape: ModelShape
    inserted_norms: Literal["ones", "calibrated"] | None
    first: int
    last: int


def phases(
    config: RecalibrationConfig, position_embedding: Literal["none", "rope"], layout: Layout, row_length: int
) -> tuple[Phase, ...]:
    """The phases of a training in order; `position_embedding` is what the trained model has in the end."""
    steps = config.steps(row_length)
    only = Phase(position_embedding, layout.shape, layout.inserted_norms, 1, steps)
    if position_embedding == "rope" or config.drop_at_step is None:
        return (only,)
    shape = with_qk_norm(layout.shape, config.drop_qk_norm, layout.source, field="recalibration.drop_qk_norm")
    norms = layout.inserted_norms if shape == layout.shape else "ones"
    return (
        Phase("rope", layout.shape, layout.inserted_norms, 1, config.drop_at_step),
        Phase("none", shape, norms, config.drop_at_step + 1, steps),
    )


def phase_of(step: int, of_run: tuple[Phase, ...]) -> Phase:
    """The phase that `step` (1 ...) belongs to."""
    return next(phase for phase in of_run if step <= phase.last)


def refuse_unfit(
    name: object, state: State | None, config: RecalibrationConfig, of_run: tuple[Phase, ...], layout: Layout, row: int
) -> None:
    """Raises: RecipeError if a training of `layout` with these settings must not go on from the checkpoint `name`.

    How many ranks wrote it, and at which ZeRO stage, does not matter. `row`: length of a row, tokens.
    """
    if state is None:
        return
    steps = of_run[-1].last
    if state.step >= steps:
        raise RecipeError(f"{name}: of step {state.step:,}, and recalibration.tokens is enough for {steps:,}")
    phase = phase_of(state.step, of_run)
    if state.shape != phase.shape or state.source_fingerprint != layout.source_fingerprint:
        raise RecipeError(f"{name}: of another model ({state.source}) than this training's ({layout.source})")
    if state.position_embedding != phase.position_embedding:
        raise RecipeError(f"{name}: of a training with position_embedding = {state.position_embedding} at that step")
    tokens = state.step * config.batch * row
    if state.tokens != tokens:
        raise RecipeError(
            f"{name}: {state.tokens:,} tokens in {state.step:,} steps, but {tokens:,} with this batch and row "
            "length; what was trained on would be lost count of"
        )
