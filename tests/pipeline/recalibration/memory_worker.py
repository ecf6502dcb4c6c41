"""One of two TP ranks that trains models of random weights and measures what that takes of its resident memory.

`torchrun ... -m tests.pipeline.recalibration.memory_worker CASES.json`; rank 0 leaves peaks.json beside it:
bytes by name.
"""

import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.pipeline.recalibration.ranks_of_a_test import join
from tests.process_memory import begin_peak_anew, resident


def main() -> None:
    join(2)
    path = Path(sys.argv[1])
    peaks = {case["name"]: measure(case) for case in json.loads(path.read_text())}
    if torch.distributed.get_rank() == 0:
        (path.parent / "peaks.json").write_text(json.dumps(peaks))


def measure(case: dict) -> int:
    """Bytes at the peak of the second step, beyond those before the model was built."""
    from model_surgery.megatron.model import build_model, weighted_loss
    from model_surgery.shape import ModelShape
    from pipeline.recalibration.engine import DTYPES, build_engine
    from pipeline.recipe.recalibration import RecalibrationConfig

    shape = ModelShape.model_validate(case["shape"])
    config = RecalibrationConfig.model_validate(case["config"])
    gc.collect()
    before = resident("VmRSS")
    weights = {
        name: torch.rand_like(tensor) * 0.02
        for name, tensor in build_model(shape, position_embedding="none", dtype=DTYPES[config.precision])
        .state_dict()
        .items()
        if tensor is not None
    }
    engine = build_engine(config, SimpleNamespace(shape=shape), weights, "none")
    del weights
    for _ in range(2):
        gc.collect()
        begin_peak_anew()
        rows = torch.randint(shape.vocab, (config.micro_batch, shape.context + 1))
        documents = torch.arange(shape.context).expand(config.micro_batch, -1) // 256
        weights = torch.full((config.micro_batch, shape.context), 1 / rows[:, 1:].numel())
        documents = documents if config.mask_documents else None
        engine.backward(weighted_loss(engine, rows[:, :-1], rows[:, 1:], weights, documents))
        engine.step()
    peak = resident("VmHWM")
    engine.destroy()
    return peak - before


if __name__ == "__main__":
    main()
