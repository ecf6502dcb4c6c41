"""One process that trains engines of several settings, one after another, on the same groups.

`torchrun ... -m tests.pipeline.recalibration.model_options_worker CASES.json`: all cases have one TP degree. Rank 0
leaves OUT/NAME.json of every case.
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
        outcome = train(case)
        if torch.distributed.get_rank() == 0:
            (Path(case["out"]) / f"{case['name']}.json").write_text(json.dumps(outcome))


def train(case: dict) -> dict[str, list]:
    """Losses and gradient norms of all steps, and the trained model's loss of every token of two held-out rows.

    Also the names of the parameters that decay.
    """
    from megatron.core import parallel_state

    from data_prep.artifact import ShardSet
    from data_prep.rows import build_rows
    from model_surgery.layout import Layout, read_rank
    from model_surgery.megatron.model import token_losses
    from pipeline.recalibration.batches import micro_batches, read_rows
    from pipeline.recalibration.engine import build_engine, parameter_groups
    from pipeline.recalibration.loss import loss_factor, share_of_loss
    from pipeline.recalibration.schedule import lr_factor
    from pipeline.recipe.recalibration import RecalibrationConfig

    config, device = RecalibrationConfig.model_validate(case["config"]), torch.device("cpu")
    shards, layout = ShardSet.load(Path(case["shards"])), Layout.load(Path(case["layout"]))
    slices = read_rank(Path(case["layout"]), layout, parallel_state.get_tensor_model_parallel_rank())
    engine = build_engine(config, layout, slices, "none")
    decaying = {id(parameter) for parameter in parameter_groups(engine.module, config.weight_decay)[0]["params"]}
    names = [name for name, parameter in engine.module.named_parameters() if id(parameter) in decaying]
    steps = config.steps(shards.row_length)
    sizes = {"train_rows": steps * config.batch, "validation_rows": 7, "cache_dir": Path(case["out"]) / "row-index"}
    rows = build_rows(shards, Path(case["shards"]), mask_documents=config.mask_documents, **sizes)
    losses, grad_norms = [], []
    for step in range(1, steps + 1):
        for group in engine.optimizer.param_groups:
            group["lr"] = config.lr * lr_factor(step, steps, config.schedule, config.batch * shards.row_length)
        batches = list(micro_batches(rows.train, step, config.batch, config.micro_batch, device))
        factor, total = loss_factor(batches), torch.zeros(())
        for batch in batches:
            loss = share_of_loss(engine, batch, factor)
            engine.backward(loss)
            engine.step()
            total += loss.detach() / len(batches)
        torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
        losses.append(total.item() / parallel_state.get_data_parallel_world_size())
        grad_norms.append(float(engine.get_global_grad_norm()))
    engine.eval()
    held = read_rows(rows.validation, [0, 1], device)
    with torch.no_grad():
        after = token_losses(engine, held.tokens, held.labels, held.documents).flatten().tolist()
    engine.destroy()
    return {"losses": losses, "grad_norms": grad_norms, "held_out": after, "decaying": names}


if __name__ == "__main__":
    main()
