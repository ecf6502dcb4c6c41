"""The training of one rank, from a checkpoint to the end of the budget or to a reason to end earlier."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial

import deepspeed
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_prep.artifact import ShardSet
from data_prep.rows import build_rows
from model_surgery.layout import Layout
from pipeline.recalibration.attempt import AttemptEnd, TrainingSpec
from pipeline.recalibration.batches import Batch, ReadAhead, micro_batches
from pipeline.recalibration.callback import Callback
from pipeline.recalibration.callbacks import callbacks_of, phase_of_step
from pipeline.recalibration.exchange import Report, exchange
from pipeline.recalibration.guard.rollback import Rollback, batch_of, lr_scale_of, read_rollbacks
from pipeline.recalibration.layer_agreement import agree
from pipeline.recalibration.layer_choice import LayerChoice
from pipeline.recalibration.loss import loss_factor, share_of_loss
from pipeline.recalibration.metrics.comparable import comparable_metrics
from pipeline.recalibration.metrics.files import Line
from pipeline.recalibration.metrics.machines import MachineMetrics
from pipeline.recalibration.metrics.recorder import MetricsRecorder
from pipeline.recalibration.outcome import save_outcome
from pipeline.recalibration.phases import Phase, phase_of, phases
from pipeline.recalibration.schedule import lr_factor
from pipeline.recalibration.start import Start, find_start, open_engine
from pipeline.recalibration.step import Step
from pipeline.recalibration.stop_request import StopRequest
from pipeline.recalibration.validation.validation import Validation
from pipeline.recalibration.watchdog import Watchdog


def train(spec: TrainingSpec) -> AttemptEnd:
    """Trains from the newest intact checkpoint, or the layout, until there is a reason to end; says which.

    All ranks call it. Rank 0 writes metrics and events; everything that decides is the same on all.
    """
    stop_request = StopRequest()
    shards, layout = ShardSet.load(spec.shards), Layout.load(spec.layout)
    config, of_run = spec.config, phases(spec.config, spec.position_embedding, layout, shards.row_length)
    steps = of_run[-1].last
    rollbacks = read_rollbacks(spec.out_dir)
    start = find_start(spec, rollbacks)
    phase = phase_of(start.step + 1, of_run)
    train_rows = build_rows(
        shards,
        spec.shards,
        train_rows=steps * config.batch,
        validation_rows=0,
        mask_documents=config.mask_documents,
        cache_dir=spec.out_dir / "row-index",
    ).train
    choice = agree(spec, phase.shape, shards.row_length)
    engine = open_engine(spec, layout, phase, start, choice)
    validation = Validation.build(config, shards, spec.shards, spec.out_dir / "row-index", engine.device)
    trained = layout.model_copy(
        update={"shape": phase.shape, "inserted_norms": phase.inserted_norms, "tensor_parallel": spec.tensor_parallel}
    )
    with open_recorder(spec, start.step, steps) as recorder:
        watchdog = Watchdog(spec.out_dir, config.hang_seconds)
        machines = MachineMetrics(spec, phase.shape, shards.row_length, engine.device, recorder)
        callbacks = callbacks_of(
            spec,
            engine,
            trained=trained,
            phase=phase,
            rollbacks=rollbacks,
            stop_request=stop_request,
            watchdog=watchdog,
            machines=machines,
            validation=validation,
            recorder=recorder,
        )
        training = Training(spec, engine, train_rows, shards.row_length, phase, steps, rollbacks, callbacks, recorder)
        if recorder:
            record_start(recorder, spec, start, phase, choice, machines.machines, engine.device)
        history = shared_history(spec, recorder)
        with watchdog:
            end = training.run(start.step, history)
        if end.reason == "finished":
            save_outcome(engine, spec, trained, validation.lengths[0].rows, steps, training.tokens(steps))
    stop_request.ignore()
    return end


def open_recorder(spec: TrainingSpec, done: int, steps: int) -> AbstractContextManager[MetricsRecorder | None]:
    """The recorder on rank 0, nothing on the others."""
    if torch.distributed.get_rank() != 0:
        return nullcontext()
    wandb_project = spec.config.wandb_project
    return MetricsRecorder(
        spec.out_dir, done=done, steps=steps, description=spec.description, wandb_project=wandb_project
    )


def shared_history(spec: TrainingSpec, recorder: MetricsRecorder | None) -> list[Line]:
    """The lines of metrics.jsonl before this attempt, the same on all ranks, which must all call it.

    Its start must be recorded: validations of other rows than it reads are left out.
    """
    lines = [comparable_metrics(spec.out_dir) if recorder else []]
    torch.distributed.broadcast_object_list(lines)
    return lines[0]


def record_start(
    recorder: MetricsRecorder,
    spec: TrainingSpec,
    start: Start,
    phase: Phase,
    choice: LayerChoice,
    machines: list[str],
    device: torch.device,
) -> None:
    """Notes what this attempt begins from, where, and with whose layers."""
    recorder.event(
        "started",
        start.step,
        position_embedding=phase.position_embedding,
        tensor_parallel=spec.tensor_parallel,
        machines=machines,
        validation_rows=spec.config.validation_rows,
        **asdict(choice),
    )
    if device.type == "cuda" or spec.config.precision == "fp8":
        recorder.say(str(choice))
    for problem in start.set_aside:
        recorder.say(problem)
        recorder.event("checkpoint_damaged", start.step, problem=problem)


@dataclass
class Training:
    """The steps of one attempt. What is done beside a step itself, callbacks do."""

    spec: TrainingSpec
    engine: deepspeed.DeepSpeedEngine
    rows: Dataset
    row_length: int
    phase: Phase
    steps: int
    """Of the whole training."""
    rollbacks: tuple[Rollback, ...]
    callbacks: list[Callback]
    recorder: MetricsRecorder | None

    def run(self, done: int, history: list[Line]) -> AttemptEnd:
        """Steps `done` + 1 to the end of the phase, or to a reason to end before."""
        for callback in self.callbacks:
            callback.attempt_begin(done, history)
        ahead = ReadAhead(self.read, done + 1, self.phase.last)
        for number in range(done + 1, self.phase.last + 1):
            if end := self.step(number, ahead):
                return end
        for callback in self.callbacks:
            callback.attempt_end()
        return AttemptEnd(reason="finished" if self.phase.last == self.steps else "drop", step=self.phase.last)

    def step(self, number: int, ahead: ReadAhead) -> AttemptEnd | None:
        """One step, its line in metrics.jsonl, and the reason to end after it, if there is one."""
        step = Step(
            number=number,
            is_last=number == self.steps,
            lr=self.lr(number),
            tokens=self.tokens(number),
            began=time.perf_counter(),
            phase=partial(phase_of_step, self.callbacks, number),
        )
        for callback in self.callbacks:
            callback.step_begin(step)
        with step.phase("data"):
            batches = ahead.take(number)
        share = self.accumulate(step, batches)
        with step.phase("exchange"):
            step.report = Report(loss=share.item(), data_wait_seconds=ahead.waited)
            for callback in self.callbacks:
                callback.before_exchange(step)
            step.reports = exchange(step.report, self.engine.device)
        for callback in self.callbacks:
            callback.before_update(step)
        with step.phase("update"):
            self.engine.step()  # the veto asks the guard
        for callback in self.callbacks:
            callback.after_update(step)
        for callback in self.callbacks:
            callback.step_end(step)
        if self.recorder:
            self.recorder.write(number, step.line())
        for callback in self.callbacks:
            callback.line_written(step)
        ends = (callback.reason_to_end(step) for callback in self.callbacks)
        return next((end for end in ends if end is not None), None)

    def accumulate(self, step: Step, batches: list[Batch]) -> Tensor:
        """Gradients of the global batch; a scalar whose mean over data-parallel ranks is its loss."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = step.lr
        factor = loss_factor(batches)  # how much each counts depends on all of them
        losses: list[Tensor] = []
        for number, batch in enumerate(batches):
            if losses:
                self.engine.step()  # within the accumulation it only counts
            with step.phase(f"forward {number}"):
                loss = share_of_loss(self.engine, batch, factor)
            with step.phase(f"backward {number}"):
                self.engine.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def read(self, step: int) -> list[Batch]:
        """This rank's micro batches of a step."""
        config, number = self.spec.config, batch_of(step, self.rollbacks, self.steps)
        return list(micro_batches(self.rows, number, config.batch, config.micro_batch, self.engine.device))

    def lr(self, step: int) -> float:
        """The schedule's learning rate, times what the guard has lowered it to."""
        config = self.spec.config
        scheduled = lr_factor(step, self.steps, config.schedule, config.batch * self.row_length)
        return config.lr * (scheduled * lr_scale_of(step, self.rollbacks))

    def tokens(self, step: int) -> int:
        """Tokens read by the end of a step."""
        return step * self.spec.config.batch * self.row_length
