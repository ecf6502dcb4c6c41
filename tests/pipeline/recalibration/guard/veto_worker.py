"""Engines of every kind trained twice by these processes: with updates that are left out, and without those batches.

`torchrun ... -m tests.pipeline.recalibration.guard.veto_worker LAYOUT OUT`; every rank leaves OUT/RANK.json.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from megatron.core import parallel_state
from torch import Tensor

from model_surgery.layout import Layout, read_rank
from model_surgery.megatron.model import token_losses
from pipeline.recalibration.engine import build_engine
from pipeline.recalibration.guard.veto import install_veto
from pipeline.recipe.recalibration import RecalibrationConfig
from tests.pipeline.recalibration.ranks_of_a_test import join

KINDS = [f"{precision} {stage}" for precision in ("fp32", "bf16") for stage in (1, 2, 3)]
PLAN = ("nan on one rank", "good", "veto", "inf", "good")
"""What is wrong with each batch of the first run; the second run has the good ones alone."""

_SHARE, _MICRO_BATCH, _ROW, _VOCABULARY = 4, 2, 32, 96


def main(layout_folder: Path, out: Path) -> None:
    layout = Layout.load(layout_folder)
    join(layout.tensor_parallel)
    slices = read_rank(layout_folder, layout, parallel_state.get_tensor_model_parallel_rank())
    outcome = {kind: compare(kind, layout, slices) for kind in KINDS}
    (out / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(outcome))


def compare(kind: str, layout: Layout, slices: dict[str, Tensor]) -> dict[str, Any]:
    """What the veto saw of every update, the norms of the run without trouble, and whether both end the same."""
    guarded, plain = (build(kind, layout, slices) for _ in range(2))
    calls: list[float] = []

    def judge(norm: float) -> str | None:
        calls.append(norm)
        return "vetoed" if trouble == "veto" else None

    veto = install_veto(guarded, judge)
    norms, reasons, plain_norms = [], [], []
    for number, trouble in enumerate(PLAN):
        train_step(guarded, number, trouble)
        norms.append(veto.norm)
        reasons.append(veto.reason)
        if trouble == "good":
            train_step(plain, number, trouble)
            plain_norms.append(float(plain.get_global_grad_norm()))
    outcome = {"norms": norms, "reasons": reasons, "calls": calls, "plain_norms": plain_norms}
    outcome["equal"] = all(torch.equal(*pair) for pair in zip(state(guarded), state(plain), strict=True))
    outcome["skipped_steps"] = guarded.skipped_steps
    for engine in (guarded, plain):
        engine.destroy()
    return outcome


def build(kind: str, layout: Layout, slices: dict[str, Tensor]) -> deepspeed.DeepSpeedEngine:
    precision, stage = kind.split()
    batch = _SHARE * parallel_state.get_data_parallel_world_size()
    config = RecalibrationConfig(
        tokens=len(PLAN) * batch * _ROW,
        batch=batch,
        micro_batch=_MICRO_BATCH,
        data_parallel=parallel_state.get_data_parallel_world_size(),
        lr=3e-3,
        weight_decay=0.1,
        precision=precision,
        zero_stage=int(stage),
    )
    return build_engine(config, layout, slices, "none")


def train_step(engine: deepspeed.DeepSpeedEngine, number: int, trouble: str) -> None:
    """One update; trouble is in the last micro batch, when the others' gradients have been summed."""
    rank = parallel_state.get_data_parallel_rank()
    draw = torch.Generator().manual_seed(1000 * number + rank)
    rows = torch.randint(_VOCABULARY, (_SHARE, _ROW + 1), generator=draw)
    scale = {"inf": math.inf, "nan on one rank": math.nan if rank == 1 else 1.0}.get(trouble, 1.0)
    for start in range(0, _SHARE, _MICRO_BATCH):
        micro = rows[start : start + _MICRO_BATCH]
        loss = token_losses(engine, micro[:, :-1], micro[:, 1:]).mean()
        engine.backward(loss * scale if start + _MICRO_BATCH == _SHARE else loss)
        engine.step()


def state(engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    """All of this rank that the next update depends on: weights, their fp32 masters, Adam's moments and its step."""
    tensors = [getattr(parameter, "ds_tensor", parameter) for parameter in engine.module.parameters()]
    for master, moments in engine.optimizer.state.items():
        tensors += [master, moments["step"], moments["exp_avg"], moments["exp_avg_sq"]]
    return tensors


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
