"""Process groups: torch.distributed, Megatron-core's tensor and data parallel groups, and DeepSpeed's view of them."""

import os
from datetime import timedelta

import deepspeed
import torch
from megatron.core import parallel_state

from model_surgery.megatron.cpu import use_cpu_if_no_gpu
from model_surgery.megatron.model import start_parallel

_TIMEOUT = timedelta(minutes=10)


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


def start_processes(tensor_parallel: int) -> torch.device:
    """Joins this process (launched by torchrun) to the run; returns its device."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = use_cpu_if_no_gpu()
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(backend, timeout=_TIMEOUT, verbose=False)
    start_parallel(tensor_parallel)
    return device


def mean_over_data_parallel(value: torch.Tensor) -> float:
    """The mean of a scalar over the data-parallel ranks."""
    total = value.detach().float().clone()
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
    return total.item() / parallel_state.get_data_parallel_world_size()
