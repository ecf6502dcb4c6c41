"""How a test's own processes join each other, as those of a training do."""

import faulthandler
import logging

from model_surgery.megatron.cpu import forgo_compiler_if_no_gpu, use_cpu_if_no_gpu
from pipeline.launch.processes import die_with_parent


def join(tensor_parallel: int) -> None:
    """For a process that torchrun started: gloo, and Megatron-core's groups."""
    faulthandler.enable()
    die_with_parent()
    forgo_compiler_if_no_gpu()
    import deepspeed

    from model_surgery.megatron.model import start_parallel

    logging.getLogger().setLevel(logging.ERROR)
    use_cpu_if_no_gpu()
    deepspeed.init_distributed("gloo", verbose=False)
    start_parallel(tensor_parallel)
