"""Any training checkpoint into a DeepSpeed engine, whatever the ranks and the ZeRO stage of either."""

import deepspeed
import torch
from deepspeed.utils import (
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from megatron.core import parallel_state
from torch import Tensor

from model_surgery.shape import ModelShape
from pipeline.recalibration.checkpoints.sources import Source, slices
from pipeline.recalibration.checkpoints.state import MOMENTS, PARTS, WEIGHTS


def restore(engine: deepspeed.DeepSpeedEngine, source: Source, shape: ModelShape) -> None:
    """Sets fp32 masters, Adam's moments and its step count, one tensor at a time; every rank takes its own part.

    The engine must have been built from the checkpoint's weights: what it computes with is then already their rounding.

    Raises: RecipeError or SurgeryError if the checkpoint is damaged.
    """
    begin_moments(engine, source.updates)
    parameters = dict(engine.module.named_parameters())
    ranks, rank = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    for part in PARTS:
        for target, value in slices(source, part, shape, tensor_parallel=ranks, rank=rank):
            set_part(parameters[target], part, value)
    engine.global_steps = source.state.step
    engine.global_samples = source.state.step * engine.train_batch_size()


def begin_moments(engine: deepspeed.DeepSpeedEngine, updates: int) -> None:
    """Makes the state that torch's AdamW would make at its first step: moments of zeros, and `updates` as its step."""
    optimizer, is_stage_3 = engine.optimizer, engine.zero_optimization_stage() == 3
    if is_stage_3:
        flats = optimizer.fp32_partitioned_groups_flat
    else:
        flats = [group["params"][0] for group in optimizer.param_groups]
    for flat in flats:
        moments = {key: torch.zeros_like(flat.detach()) for key in MOMENTS}
        optimizer.state[flat] = {"step": torch.tensor(float(updates), device=flat.device), **moments}
    if not is_stage_3:
        # Gives every parameter its view into the flat moments, as the first step would.
        optimizer._lazy_init_hp_params_optimizer_state()


def set_part(parameter: torch.nn.Parameter, part: str, value: Tensor) -> None:
    """Sets this rank's share of a parameter's master weights or moment; `value`: the whole slice of its TP rank."""
    if hasattr(parameter, "ds_tensor"):
        share = share_of_stage_3(value, parameter.ds_tensor.numel())
        if part == WEIGHTS:
            safe_set_local_fp32_param(parameter, share)
        else:
            safe_set_local_optimizer_state(parameter, share, part)
    elif part == WEIGHTS:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, part)


def share_of_stage_3(value: Tensor, numel: int) -> Tensor:
    """This data-parallel rank's `numel` elements, those beyond the parameter's end being zeros."""
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    padded = torch.nn.functional.pad(value.flatten(), (0, numel * ranks - value.numel()))
    return padded.narrow(0, rank * numel, numel)
