"""One process of what is measured inside a training: `torchrun ... -m tests....validation_worker CASES.json`.

A case names a layout, shards, settings and positional embedding; every rank leaves what it found in OUT/rank-N.json.
"""

import json
import sys
from pathlib import Path

import torch

from tests.pipeline.recalibration.ranks_of_a_test import join


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    join(cases[0]["tensor_parallel"])
    for case in cases:
        results = measure(case)
        path = Path(case["out"]) / f"rank-{torch.distributed.get_rank()}.json"
        path.write_text(json.dumps(results))


def measure(case: dict) -> dict:
    """Validation, then one update that is watched, and validation again."""
    from megatron.core import parallel_state

    from data_prep.artifact import ShardSet
    from model_surgery.layout import Layout, read_rank
    from pipeline.recalibration.batches import read_rows
    from pipeline.recalibration.engine import build_engine
    from pipeline.recalibration.loss import loss_factor, share_of_loss
    from pipeline.recalibration.metrics.layers import LayerMetrics
    from pipeline.recalibration.metrics.validation_result import write_validation
    from pipeline.recalibration.validation.validation import Validation
    from pipeline.recipe.recalibration import RecalibrationConfig

    config = RecalibrationConfig.model_validate(case["config"])
    folder, shards = Path(case["shards"]), ShardSet.load(Path(case["shards"]))
    layout = Layout.load(Path(case["layout"]))
    slices = read_rank(Path(case["layout"]), layout, parallel_state.get_tensor_model_parallel_rank())
    engine = build_engine(config, layout, slices, case["position"])
    validation = Validation.build(config, shards, folder, Path(case["out"]) / "row-index", torch.device("cpu"))
    first = validation.measure(engine)
    watch = LayerMetrics(engine.module, layout.shape)
    rows, rank = validation.lengths[0].rows, parallel_state.get_data_parallel_rank()
    batches = [read_rows(rows, [number + rank for number in pair], torch.device("cpu")) for pair in ((0, 2), (4, 0))]
    factor = loss_factor(batches)
    with torch.no_grad():
        unwatched = share_of_loss(engine, batches[0], factor)
    with watch:
        for batch in batches:
            loss = share_of_loss(engine, batch, factor)
            assert batch is not batches[0] or loss.item() == unwatched.item()
            engine.backward(loss)
            numbers = watch.numbers()
            engine.step()
    if torch.distributed.get_rank() == 0:
        write_validation(Path(case["out"]), 1, first)
    again = validation.measure(engine).scalars()
    assert watch.numbers()["attention_logit_max"] == numbers["attention_logit_max"]  # it looked no longer
    return {"scalars": first.scalars(), "json": first.as_json(), "layers": numbers, "after_update": again}


if __name__ == "__main__":
    main()
