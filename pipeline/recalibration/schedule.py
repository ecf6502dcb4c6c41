"""The learning rate of every update, as a pure function of its number."""

import math

from pipeline.recalibration.config import ScheduleConfig


def lr_factor(update: int, updates: int, schedule: ScheduleConfig) -> float:
    """Share of the peak learning rate for update number `update` (1 .. `updates`).

    Warm-up rises linearly and reaches 1 at update `warmup_steps`. cosine then falls to `min_lr_ratio`, reached at the
    last update; wsd stays at 1 and falls by a cosine over the last `decay_steps` updates (warm-up, stable, decay:
    Hu et al. 2024, arXiv:2404.06395).
    """
    if update <= schedule.warmup_steps:
        return update / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    start = schedule.warmup_steps if schedule.kind == "cosine" else updates - schedule.decay_steps
    if update <= start:
        return 1.0
    progress = (update - start) / (updates - start)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return schedule.min_lr_ratio + (1.0 - schedule.min_lr_ratio) * cosine
