"""The learning rate of every update, as a pure function of its number."""

import math

from pipeline.errors import RecipeError
from pipeline.recipe.recalibration import RecalibrationConfig, ScheduleConfig

_WARMUP_STEPS = 100


def warmup_steps(schedule: ScheduleConfig, tokens_per_step: int) -> int:
    """Length of the warm-up in steps, whichever way it is given."""
    if schedule.warmup_tokens is not None:
        return -(-schedule.warmup_tokens // tokens_per_step)
    return _WARMUP_STEPS if schedule.warmup_steps is None else schedule.warmup_steps


def lr_factor(step: int, steps: int, schedule: ScheduleConfig, tokens_per_step: int) -> float:
    """Share of the peak learning rate for update number `step` (1 .. `steps`).

    Warm-up rises linearly and reaches 1 at its last step. cosine then falls to `min_lr_ratio`, reached at the
    last update; wsd stays at 1 and falls over the last `decay_steps` updates (warm-up, stable, decay:
    Hu et al. 2024, arXiv:2404.06395), by a cosine or linearly.
    """
    warmup = warmup_steps(schedule, tokens_per_step)
    if step <= warmup:
        return step / warmup
    if schedule.kind == "constant":
        return 1.0
    start = warmup if schedule.kind == "cosine" else steps - schedule.decay_steps
    if step <= start:
        return 1.0
    progress = (step - start) / (steps - start)
    remaining = 1.0 - progress if schedule.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return schedule.min_lr_ratio + (1.0 - schedule.min_lr_ratio) * remaining


def check_schedule(config: RecalibrationConfig, row_length: int) -> None:
    """Raises: RecipeError if the token budget holds no step, or fewer than the schedule's fixed parts."""
    steps, schedule = config.steps(row_length), config.schedule
    if steps < 1:
        raise RecipeError(
            f"recalibration.tokens = {config.tokens:,}: one step takes {config.batch * row_length:,} tokens "
            f"(batch {config.batch} x row length {row_length}); give at least that"
        )
    fixed = warmup_steps(schedule, config.batch * row_length) + schedule.decay_steps
    if fixed > steps:
        raise RecipeError(
            f"recalibration.schedule: warm-up and decay take {fixed} steps, the budget of {config.tokens:,} tokens has "
            f"{steps}; shorten them or give at least {fixed * config.batch * row_length:,} tokens"
        )
    if config.drop_at_step is not None and config.drop_at_step >= steps:
        raise RecipeError(
            f"recalibration.drop_at_step = {config.drop_at_step:,}: the budget of {config.tokens:,} tokens has "
            f"{steps:,} steps, so nothing would be trained after the drop; drop earlier or give more tokens"
        )
