"""DeepSpeed around the Megatron-core model."""

from typing import Any, Literal

import deepspeed
import torch
from deepspeed.utils import logger as deepspeed_logger

from model_surgery.layout import Layout
from model_surgery.megatron.model import build_model, load_slices
from pipeline.recalibration.layer_choice import PLAIN, LayerChoice
from pipeline.recalibration.memory import REDUCE_BUCKET
from pipeline.recalibration.parallel import ModelParallelUnit
from pipeline.recipe.recalibration import ResolvedTraining

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_engine(
    config: ResolvedTraining,
    layout: Layout,
    slices: dict[str, torch.Tensor],
    position_embedding: Literal["none", "rope"],
    choice: LayerChoice = PLAIN,
) -> deepspeed.DeepSpeedEngine:
    """This rank's part of the model under DeepSpeed, weights loaded, optimizer state empty."""
    deepspeed_logger.setLevel("ERROR")
    model = build_model(
        layout.shape,
        position_embedding=position_embedding,
        dtype=DTYPES[config.dtype],
        sequence_parallel=config.sequence_parallel,
        recompute=config.recompute == "full",
        layers=choice.layers,
        fp8=choice.fp8(config),
    )
    load_slices(model, slices)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, config.weight_decay),
        mpu=ModelParallelUnit(),
        config=engine_config(config, parameters=sum(parameter.numel() for parameter in model.parameters())),
    )
    return engine


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors (norms) without; one group where there is no decay."""
    parameters = list(model.parameters())
    if weight_decay == 0:
        return [{"params": parameters, "weight_decay": 0.0}]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def engine_config(config: ResolvedTraining, *, parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration (https://www.deepspeed.ai/docs/config-json/) for a rank with so many parameters."""
    return {
        "train_batch_size": config.batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.batch // (config.micro_batch * config.data_parallel),
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {
            "stage": config.zero_stage,
            # DeepSpeed takes the whole bucket for every micro batch, and torch's deterministic mode fills it.
            "reduce_bucket_size": min(parameters, REDUCE_BUCKET),
            # DeepSpeed's ZeRO 1 and 2 sum a bucket over all ranks either way; so it does without copies of it.
            "reduce_scatter": config.zero_stage == 3,
        },
        # ZeRO 1: a bf16 gradient is added to the fp32 sum and freed as soon as it is there, not with all others.
        "bf16": {"enabled": config.dtype == "bf16", "immediate_grad_update": True},
        # Micro batches are summed in fp32: in bf16 a sum of many loses its small terms.
        "data_types": {"grad_accum_dtype": "fp32"},
        # And so are ranks, where that happens once per update; at ZeRO 2 and 3 it does for every micro batch.
        "communication_data_type": "fp32" if config.zero_stage == 1 else config.dtype,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.lr,
                "betas": list(config.betas),
                "eps": config.eps,
                # DeepSpeed's own CPU Adam does not give the same losses after a resume; torch's does.
                "torch_adam": True,
                # One pass over the memory and no copies of the moments; on a CPU five times as fast.
                "fused": True,
            },
        },
        "steps_per_print": 2**62,
    }
