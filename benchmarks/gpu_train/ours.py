"""This project's training step on one device: `python -m benchmarks.gpu_train.ours CASE` prints JSON of it."""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

from model_surgery.megatron.cpu import accelerator_name, forgo_compiler_if_no_gpu, use_cpu_if_no_gpu


def main() -> None:
    from benchmarks.gpu_train.cases import Case

    case = Case(**json.loads(sys.argv[1]))
    if case.config().layers != "compiled":
        forgo_compiler_if_no_gpu()
    os.environ.setdefault("DS_ACCELERATOR", accelerator_name())
    print(json.dumps(measure(case)))


def measure(case: Any) -> dict[str, Any]:
    """Seconds of every timed step, losses, peak memory, one step by kinds of kernels, and what it computed with."""
    import deepspeed
    import torch

    from benchmarks.gpu_train.measure import ALONE, profiled, timed
    from model_surgery.megatron.model import start_parallel
    from model_surgery.shape import ModelShape
    from pipeline.recalibration.batches import Batch
    from pipeline.recalibration.engine import build_engine
    from pipeline.recalibration.layer_agreement import this_device
    from pipeline.recalibration.layer_choice import choose
    from pipeline.recalibration.loss import share_of_loss

    device, shape, config = use_cpu_if_no_gpu(), ModelShape.model_validate(case.shape), case.config()
    os.environ |= ALONE
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    start_parallel(1)
    choice = choose(config, shape, case.length, this_device())
    engine = build_engine(config, SimpleNamespace(shape=shape), random_weights(shape), "none", choice)
    if engine.module.fp8:
        engine.module.fp8.active = True
    rows = torch.randint(shape.vocab, (case.steps + 2, case.accumulate, case.micro_batch, case.length + 1))

    def step(number: int) -> float:
        total = 0.0
        for micro in rows[number]:
            tokens = micro.to(device, non_blocking=True)
            loss = share_of_loss(engine, Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()), None)
            engine.backward(loss)
            engine.step()
            total += loss.item() / case.accumulate
        return total

    result = timed(step, case.steps, case.warm_up)
    return result | {"breakdown": profiled(step, case.steps + 1), "computed_with": str(choice)}


def random_weights(shape: Any) -> dict[str, Any]:
    """As the initial weights of such models, 0.02 normal and norms of ones, but for a million values that repeat.

    Billions drawn anew would take longer than what is measured.
    """
    import torch

    from model_surgery.megatron.model import build_model

    plain = build_model(shape, position_embedding="none", dtype=torch.bfloat16)
    drawn = torch.randn(1_000_003).mul_(0.02).to(torch.bfloat16)  # a prime: columns of a matrix do not repeat

    def weights(tensor: torch.Tensor) -> torch.Tensor:
        return drawn.repeat(-(-tensor.numel() // len(drawn)))[: tensor.numel()].view(tensor.shape)

    return {
        name: torch.ones_like(tensor) if "layernorm" in name else weights(tensor)
        for name, tensor in plain.state_dict().items()
    }


if __name__ == "__main__":
    main()
