"""The learning rate of every update, as a pure function of its number."""

import math

from pipeline.recalibration.config import ScheduleConfig

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
