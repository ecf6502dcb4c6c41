"""What Megatron-core 0.16 needs in order to run without a GPU. All of it is here and nowhere else."""

from typing import Any

import torch


def forgo_compiler_if_no_gpu() -> None:
    """From now on `torch.compile` leaves functions as they are, unless there is a GPU; call it before other imports.

    Megatron-core and DeepSpeed decorate functions with it that nothing here calls on a CPU. That alone loads the
    compiler, 1.6 of the 4 seconds that a training process imports.
    """
    if not torch.cuda.is_available():
        torch.compile = _uncompiled  # type: ignore[assignment]  # of torch's overloads it needs what decorators use


def _uncompiled(function: Any = None, **options: Any) -> Any:
    """As torch.compile is called: with a function, or with options alone, then it gives a decorator."""
    return function or (lambda decorated: decorated)


def accelerator_name() -> str:
    """DeepSpeed's word for what this machine computes on; without it DeepSpeed warns that it found no GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_cpu_if_no_gpu() -> torch.device:
    """The device to run on; without a GPU, first makes Megatron-core content with the CPU.

    Megatron-core asks `torch.cuda.current_device()` where to place new tensors (rotary frequencies, buffers), and
    draws initial weights under its CUDA random-number tracker. On a machine without CUDA both would fail although
    nothing of CUDA is needed.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    # Megatron-core passes what it gives on as `device=`, which may be a torch.device as well as a number.
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda device=None: None
    return torch.device("cpu")
