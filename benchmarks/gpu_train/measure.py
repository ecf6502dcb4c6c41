"""Timing a loop of steps on whatever device it runs on, and one step under torch's profiler."""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_train.breakdown import breakdown

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541"}
"""A process group of one."""


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(step: Callable[[int], float], steps: int, warm_up: int) -> dict[str, Any]:
    """Runs steps 1 to `steps`; seconds of each after the warm-up, the losses, the peak of memory."""
    seconds, losses = [], []
    for number in range(1, steps + 1):
        synchronize()
        began = time.perf_counter()
        losses.append(step(number))
        synchronize()
        seconds.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"seconds": seconds[warm_up:], "losses": losses, "memory_bytes": memory}


def profiled(step: Callable[[int], float], number: int) -> dict[str, float]:
    """Seconds of one more step by kind of kernel."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    synchronize()
    with profile(activities=activities) as seen:
        began = time.perf_counter()
        step(number)
        synchronize()
        wall = time.perf_counter() - began
    of_kernel = (
        (event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6)
        for event in seen.key_averages()
    )
    return breakdown(of_kernel, wall)
