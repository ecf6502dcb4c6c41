"""The recalibration stage: checks, then the training processes, then the facts."""

from pathlib import Path
from typing import Any, Literal

from data_prep.artifact import ShardSet
from model_surgery.layout import LAYOUT_FILE, Layout
from pipeline.disk import explained_full_disk
from pipeline.errors import BAD_INPUT, RecipeError
from pipeline.processes import torchrun
from pipeline.recalibration.checkpoints import newest, remove_incomplete
from pipeline.recalibration.config import RecalibrationConfig
from pipeline.recalibration.job import Job
from pipeline.recalibration.metrics import read_metrics
from pipeline.recalibration.portable import continued_from
from pipeline.recalibration.state import refuse_unfit


def run(
    config: RecalibrationConfig,
    position_embedding: Literal["none", "rope"],
    *,
    shards: Path,
    layout: Path,
    out_dir: Path,
) -> dict[str, Any]:
    """Trains from the layout (or the newest complete checkpoint in `out_dir`) and returns the facts of the run.

    Leaves metrics.jsonl, tensorboard/, checkpoints/, layout/ (the trained weights) and probe.safetensors.
    Raises: RecipeError if the budget is too small, StageFailed if a training process fails.
    """
    row_length, start = ShardSet.load(shards).row_length, Layout.load(layout)
    check_schedule(config, row_length)
    if checkpoint := newest(out_dir / "checkpoints"):
        refuse_unfit(checkpoint, config, position_embedding, start, row_length)
    job = Job(config=config, position_embedding=position_embedding, layout=layout, shards=shards, out_dir=out_dir)
    (out_dir / "job.json").write_text(job.model_dump_json(indent=2), encoding="utf-8")
    # Without its layout.json a layout of an earlier, cut-off attempt is not taken for the one of this run.
    (out_dir / "layout" / LAYOUT_FILE).unlink(missing_ok=True)
    processes = start.tensor_parallel * config.data_parallel
    log = out_dir / "engine.log"
    try:
        with explained_full_disk(out_dir):
            torchrun("pipeline.recalibration.worker", [str(out_dir / "job.json")], processes=processes, log=log)
    except BAD_INPUT:
        remove_incomplete(out_dir / "checkpoints")
        raise
    lines = read_metrics(out_dir)
    validations = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    return {
        "steps": config.steps(row_length),
        "tokens": lines[-1]["tokens"],
        "processes": processes,
        "final_loss": lines[-1]["loss"],
        "validation_loss_before": validations.get(0),  # not measured where the metrics begin at a later step
        "validation_loss_after": [*validations.values()][-1],
        "layout_digest": Layout.load(out_dir / "layout").digest(),
        **continued_from(out_dir),
    }


def check_schedule(config: RecalibrationConfig, row_length: int) -> None:
    """Raises: RecipeError if the token budget holds no step, or fewer than the schedule's fixed parts."""
    steps, schedule = config.steps(row_length), config.schedule
    if steps < 1:
        raise RecipeError(
            f"recalibration.tokens = {config.tokens:,}: one step takes {config.batch * row_length:,} tokens "
            f"(batch {config.batch} x row length {row_length}); give at least that"
        )
    fixed = schedule.warmup_steps + schedule.decay_steps
    if fixed > steps:
        raise RecipeError(
            f"recalibration.schedule: warm-up and decay take {fixed} steps, the budget of {config.tokens:,} tokens has "
            f"{steps}; shorten them or give at least {fixed * config.batch * row_length:,} tokens"
        )
