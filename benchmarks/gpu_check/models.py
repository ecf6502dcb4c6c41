"""Models of one process, with weights and tokens drawn from seeds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu_train.measure import ALONE
from model_surgery.shape import ModelShape

KINDS: dict[str, dict[str, Any]] = {
    "torch-bf16": {"layers": "torch"},
    "compiled-bf16": {"layers": "compiled"},
    "te-bf16": {"layers": "transformer_engine"},
    "te-fp8-attention": {"layers": "transformer_engine", "fp8": {"attention": True, "linear": False}},
    "te-fp8-linear": {"layers": "transformer_engine", "fp8": {"attention": False, "linear": True}},
    "te-fp8-both": {"layers": "transformer_engine", "fp8": {"attention": True, "linear": True}},
}


def shape(size: str, layers: int, **changes: object) -> ModelShape:
    """A block of Llama 2 7B, of SmolLM-360M, or one that a CPU computes at once; few layers of it."""
    sizes = {
        "7b": {"hidden": 4096, "heads": 32, "kv_heads": 32, "head_dim": 128, "ffn": 11008, "vocab": 32000},
        "360m": {"hidden": 960, "heads": 15, "kv_heads": 5, "head_dim": 64, "ffn": 2560, "vocab": 49152},
        "tiny": {"hidden": 256, "heads": 2, "kv_heads": 1, "head_dim": 128, "ffn": 320, "vocab": 512},
    }[size]
    common = {"model_type": "llama", "context": 4096, "tied": False, "norm_eps": 1e-5, "rope_theta": 1e4}
    return ModelShape.model_validate(common | sizes | {"layers": layers} | changes)


@contextmanager
def group_of_one() -> Iterator[torch.device]:
    """Process groups of this process alone."""
    from model_surgery.megatron.cpu import use_cpu_if_no_gpu
    from model_surgery.megatron.model import start_parallel

    device = use_cpu_if_no_gpu()
    os.environ.update(ALONE)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    start_parallel(1)
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()


def build(of: ModelShape, kind: str, device: torch.device, seed: int = 0) -> torch.nn.Module:
    """A model on the device; `fp32`: torch's layers, the reference. The same weights for all, which bf16 holds."""
    from model_surgery.megatron.model import build_model
    from model_surgery.megatron.te.settings import FP8

    options = dict(KINDS.get(kind, {}))
    if "fp8" in options:
        options["fp8"] = FP8(**options["fp8"], pad_head_dim=of.head_dim < 128, amax_history=16)
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    model = build_model(of, position_embedding="none", dtype=dtype, **options).to(device)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=draw) * 0.02
            values = 1 + 5 * values if "norm" in name else values
            parameter.copy_(values.to(torch.bfloat16))
    if model.fp8:
        model.fp8.active = True
    return model


def rows(of: ModelShape, length: int, device: torch.device, seed: int = 1, count: int = 1) -> list[torch.Tensor]:
    """Tokens and labels, [count, length] each."""
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randint(of.vocab, (count, length + 1), generator=draw).to(device)
    return [drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()]
