"""Process groups: torch.distributed, Megatron-core's tensor and data parallel groups, and DeepSpeed's view of them."""

import os
from datetime import timedelta

import deepspeed
import torch
from megatron.core import parallel_state

from model_surgery.megatron.cpu import use_cpu_if_no_gpu
from model_surgery.megatron.model import start_parallel
from pipeline.recalibration.attempt import TrainingSpec

_STARTING_SECONDS = 600.0
"""Rank 0 builds the index of the rows while the others wait."""


class ModelParallelUnit:
    """The groups that DeepSpeed asks an `mpu` object for; here model parallel means tensor parallel."""

    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_tensor_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_tensor_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_src_rank = staticmethod(parallel_state.get_tensor_model_parallel_src_rank)
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)


def start_processes(spec: TrainingSpec) -> None:
    """Joins this process (launched by torchrun) to the training."""
    config = spec.config
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.manual_seed(config.seed)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    backend = "nccl" if use_cpu_if_no_gpu().type == "cuda" else "gloo"
    # The watchdogs of all ranks end the job first, and say why.
    timeout = timedelta(seconds=2 * config.hang_seconds + _STARTING_SECONDS)
    deepspeed.init_distributed(backend, timeout=timeout, verbose=False)
    start_parallel(spec.tensor_parallel, timeout)
