"""The two ways: how each is launched, and what is read from what it leaves."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from benchmarks.recalibration.cases import Case, Run
from benchmarks.recalibration.inputs import Inputs
from benchmarks.recalibration.trainer_spec import BETAS, EPS, GRADIENT_CLIP, LR, TrainerSpec, read_peaks
from pipeline.errors import StageFailed
from pipeline.launch.processes import torchrun
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.metrics import read_metrics
from pipeline.recipe.recalibration import ResolvedTraining


def ours(case: Case, inputs: Inputs, out_dir: Path, *, module: str = "our_way", **settings: object) -> None:
    """This project's training stage, launched as `pipeline.recalibration.run` launches it; no checkpoint is due."""
    config = ResolvedTraining(
        tokens=case.steps * case.tokens_per_step,
        batch=case.batch,
        micro_batch=case.micro_batch,
        data_parallel=case.ranks,
        lr=LR,
        schedule={"kind": "constant", "warmup_steps": 0},
        betas=BETAS,
        eps=EPS,
        gradient_clip=GRADIENT_CLIP,
        precision=case.precision,
        recompute=case.recompute,
        layers=case.layers,
        checkpoint_every=case.steps + 1,
        validation_every=case.steps + 1,
        validation_rows=1,
        **settings,
    )
    spec = TrainingSpec(
        config=config,
        position_embedding="none",
        tensor_parallel=1,
        layout=inputs.layout,
        shards=inputs.shards,
        out_dir=out_dir,
    )
    _launch(module, spec.model_dump_json(), case, out_dir)


def trainer(case: Case, inputs: Inputs, out_dir: Path) -> None:
    """transformers' Trainer with DeepSpeed ZeRO-1 and an identity rotation."""
    TrainerSpec(case=case, model=inputs.model, rows=inputs.rows, out_dir=out_dir).save(out_dir / "job.json")
    _launch("trainer_way", str(out_dir / "job.json"), case, out_dir)


WAYS: dict[str, Callable[[Case, Inputs, Path], None]] = {way.__name__: way for way in (ours, trainer)}


def run(way: str, case: Case, inputs: Inputs, out_dir: Path) -> Run:
    """One run in fresh processes; what it wrote stays in `out_dir`.

    Raises: StageFailed if a rank fails.
    """
    clear(out_dir)
    cpu, busy, started = _children_cpu(), _busy(), time.perf_counter()
    WAYS[way](case, inputs, out_dir)
    seconds = time.perf_counter() - started
    others = max(0.0, (_busy() - busy) - (_children_cpu() - cpu)) / seconds
    losses = _scalars(out_dir / "tensorboard", {"ours": "loss", "trainer": "train/loss"}[way])
    first, last = losses[case.warm_up - 1], losses[case.steps - 1]
    timed = last.wall_time - first.wall_time
    return Run(
        tokens_per_second=(last.step - first.step) * case.tokens_per_step / timed,
        losses=[event.value for event in losses],
        peak_bytes=sum(read_peaks(out_dir)),
        others_cores=others,
        data_share=_data_seconds(out_dir, case) / timed if way == "ours" else None,
    )


def clear(out_dir: Path) -> None:
    """Makes it empty."""
    shutil.rmtree(out_dir, ignore_errors=True)
    out_dir.mkdir(parents=True)


def _launch(module: str, argument: str, case: Case, out_dir: Path) -> None:
    if torchrun(f"benchmarks.recalibration.{module}", [argument], processes=case.ranks, log=out_dir / "log"):
        raise StageFailed("a signal stopped it")


def _scalars(folder: Path, tag: str) -> list[ScalarEvent]:
    """Step, value and wall time of every point: both ways write one at the end of each step."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator.Scalars(tag)


def _data_seconds(out_dir: Path, case: Case) -> float:
    """What the timed steps of this project spent waiting for rows."""
    return sum(line["data_wait_seconds"] for line in read_metrics(out_dir) if line["step"] > case.warm_up)


def _children_cpu() -> float:
    """CPU seconds of all ended processes that descend from this one."""
    times = os.times()
    return times.children_user + times.children_system


def _busy() -> float:
    """CPU seconds that the machine has spent on anything."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal
