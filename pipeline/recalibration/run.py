"""The recalibration stage: checks, then the training processes, as often as they have to be started, then the facts."""

import logging
from pathlib import Path
from typing import Any, Literal

from data_prep.artifact import ShardSet
from model_surgery.layout import LAYOUT_FILE, Layout
from pipeline.errors import BAD_INPUT, RecipeError, StageFailed, Stopped
from pipeline.launch.machines import THIS_MACHINE, Machines
from pipeline.recalibration.attempt import JOB_FILE, AttemptEnd, TrainingSpec
from pipeline.recalibration.checkpoints.folders import remove_incomplete
from pipeline.recalibration.checks import check
from pipeline.recalibration.history import continued_from
from pipeline.recalibration.layer_choice import CHOICE_FIELDS
from pipeline.recalibration.metrics.comparable import comparable_metrics, record_earlier_rows
from pipeline.recalibration.metrics.files import Line, append_event, read_events
from pipeline.recalibration.ranks import resolve
from pipeline.recalibration.schedule import check_schedule
from pipeline.recalibration.watchdog import Fault
from pipeline.recipe.recalibration import RecalibrationConfig
from pipeline.runs.folder import explained_full_run_disk

log = logging.getLogger(__name__)
WORKER = "pipeline.recalibration.worker"


def run(
    config: RecalibrationConfig,
    position_embedding: Literal["none", "rope"],
    *,
    tensor_parallel: int,
    shards: Path,
    layout: Path,
    out_dir: Path,
    machines: Machines = THIS_MACHINE,
) -> dict[str, Any]:
    """Trains from the layout (or the newest intact checkpoint in `out_dir`) and returns the facts of the run.

    Leaves metrics.jsonl, events.jsonl, tensorboard/, checkpoints/, layout/ (the trained weights) and
    probe.safetensors.

    Raises: RecipeError if the budget is too small or what is there cannot be gone on with, Stopped if a signal asked
    for it, StageFailed if a training process fails or the guard gives up.
    """
    length, shape = ShardSet.load(shards).row_length, Layout.load(layout).shape
    check_schedule(config, length)
    resolved = resolve(
        config,
        shape,
        tensor_parallel=tensor_parallel,
        row_length=length,
        slots=machines.slots,
        memory_bytes=machines.memory_bytes,
    )
    if not resolved.is_as_given(config):
        ranks, rows = resolved.data_parallel, resolved.micro_batch
        log.info("%-13s %d data-parallel ranks, micro batches of %d rows", "", ranks, rows)
    spec = TrainingSpec(
        config=resolved,
        position_embedding=position_embedding,
        tensor_parallel=tensor_parallel,
        layout=layout,
        shards=shards,
        out_dir=out_dir,
    )
    check(spec)
    record_earlier_rows(out_dir)
    (out_dir / JOB_FILE).write_text(spec.model_dump_json(indent=2), encoding="utf-8")
    # Without its layout.json a layout of an earlier, cut-off run is not taken for the one of this run.
    (out_dir / "layout" / LAYOUT_FILE).unlink(missing_ok=True)
    try:
        while (end := launch(spec, machines)).reason != "finished":
            log.info("%-13s goes on: %s at step %s", "", end.reason, f"{end.step:,}")
    except BAD_INPUT:
        remove_incomplete(spec.checkpoints)
        raise
    return facts_of(spec)


def launch(spec: TrainingSpec, machines: Machines) -> AttemptEnd:
    """One attempt: training processes from a checkpoint to an end; why they ended.

    Raises: RecipeError, Stopped or StageFailed, by their reason.
    """
    AttemptEnd.take(spec.out_dir)  # of an attempt that was killed
    Fault.take(spec.out_dir)
    asked, failure = False, StageFailed("the training processes ended without saying why; see engine.log")
    try:
        with explained_full_run_disk(spec.out_dir):
            # Not the path of job.json, which other nodes may still see as an earlier attempt left it.
            arguments = [spec.model_dump_json()]
            processes = spec.tensor_parallel * spec.config.data_parallel
            asked = machines.torchrun(WORKER, arguments, processes=processes, log=spec.out_dir / "engine.log")
    except StageFailed as error:
        # Where torchrun was told to end too, or a rank refused, it fails although its ranks said why.
        failure = error
    end, fault = AttemptEnd.take(spec.out_dir), Fault.take(spec.out_dir)
    if end is None and fault is not None:
        append_event(spec.out_dir, "hang", fault.step, line=fault.line)
        raise StageFailed(fault.line)
    if end is None:
        raise failure
    if end.reason == "refused":
        raise RecipeError(end.message)
    if end.reason == "diverged":
        raise StageFailed(
            f"training stopped at step {end.step:,}: {end.message}; see events.jsonl, docs/reliability.md"
        )
    if end.reason == "stopped" or (asked and end.reason != "finished"):
        raise Stopped(f"stopped after step {end.step:,}, whose checkpoint is complete; the next run goes on from it")
    return end


def facts_of(spec: TrainingSpec) -> dict[str, Any]:
    """What the manifest of a finished training says of it."""
    lines, events = comparable_metrics(spec.out_dir), read_events(spec.out_dir)
    kinds = [event["event"] for event in events]
    started = [event for event in events if event["event"] == "started"][-1]
    return {
        "steps": lines[-1]["step"],
        "tokens": lines[-1]["tokens"],
        "processes": spec.tensor_parallel * spec.config.data_parallel,
        "final_loss": lines[-1]["loss"],
        **losses_before_and_after(lines),
        "updates_skipped": sum("skipped" in line for line in lines),
        "rollbacks": kinds.count("rollback"),
        "sessions": kinds.count("started"),
        "machines": started["machines"],
        **{name: started[name] for name in CHOICE_FIELDS if name in started},
        "layout_digest": Layout.load(spec.out_dir / "layout").digest(),
        **continued_from(spec.out_dir),
    }


def losses_before_and_after(lines: list[Line]) -> dict[str, float | None]:
    """The first and the last validation of a training, for its manifest. lines: comparable ones.

    None: not measured, as the metrics begin at a later step, or measured on other rows than in the newest attempt.
    """
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    return {
        "validation_loss_before": losses.get(0),
        "validation_loss_after": next(reversed(losses.values()), None),
    }
