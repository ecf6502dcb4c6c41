"""The training of one rank, from a checkpoint to the end of the budget or to a reason to end earlier."""

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import deepspeed
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_prep.artifact import ShardSet
from data_prep.rows import build_rows
from model_surgery.layout import Layout
from pipeline.recalibration.attempt import AttemptEnd, TrainingSpec
from pipeline.recalibration.batches import Batch, ReadAhead, micro_batches
from pipeline.recalibration.checkpoints.checkpointer import Checkpointer
from pipeline.recalibration.exchange import Report, Reports, exchange
from pipeline.recalibration.guard.go_back import go_back
from pipeline.recalibration.guard.rollback import Rollback, batch_of, lr_scale_of, read_rollbacks
from pipeline.recalibration.guard.spikes import Guard
from pipeline.recalibration.guard.veto import install_veto
from pipeline.recalibration.layer_agreement import agree
from pipeline.recalibration.layer_choice import LayerChoice
from pipeline.recalibration.loss import loss_factor, share_of_loss
from pipeline.recalibration.metrics.files import Value, read_metrics
from pipeline.recalibration.metrics.layers import LayerMetrics
from pipeline.recalibration.metrics.machines import MachineMetrics, memory_bytes
from pipeline.recalibration.metrics.recorder import MetricsRecorder
from pipeline.recalibration.metrics.validation_result import write_validation
from pipeline.recalibration.outcome import save_outcome
from pipeline.recalibration.phases import Phase, phase_of, phases
from pipeline.recalibration.schedule import lr_factor
from pipeline.recalibration.start import Start, find_start, open_engine
from pipeline.recalibration.stop_request import StopRequest
from pipeline.recalibration.stragglers import OwnTime
from pipeline.recalibration.validation.validation import Validation
from pipeline.recalibration.watchdog import Watchdog
from pipeline.recipe.recalibration import FP8Config


def train(spec: TrainingSpec) -> AttemptEnd:
    """Trains from the newest intact checkpoint, or the layout, until there is a reason to end; says which.

    All ranks call it. Rank 0 writes metrics and events; everything that decides is the same on all.
    """
    stop_request = StopRequest()
    shards, layout = ShardSet.load(spec.shards), Layout.load(spec.layout)
    config, of_run = spec.config, phases(spec.config, spec.position_embedding, layout, shards.row_length)
    rollbacks = read_rollbacks(spec.out_dir)
    start = find_start(spec, rollbacks)
    phase = phase_of(start.step + 1, of_run)
    train_rows = build_rows(
        shards,
        spec.shards,
        train_rows=of_run[-1].last * config.batch,
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
    is_first = torch.distributed.get_rank() == 0
    steps = of_run[-1].last
    told = {"done": start.step, "steps": steps, "description": spec.description, "wandb_project": config.wandb_project}
    opened = MetricsRecorder(spec.out_dir, **told) if is_first else None
    with opened or nullcontext() as metrics:
        sizes = {"steps": steps, "row_length": shards.row_length}
        decided = {"rollbacks": rollbacks, "stop_request": stop_request, "metrics": metrics}
        training = Training(spec, trained, engine, train_rows, validation, phase, choice, **sizes, **decided)
        training.remember(start)
        with training.watchdog:
            end = training.run(start.step)
        if end.reason == "finished":
            save_outcome(engine, spec, trained, validation.lengths[0].rows, steps, training.tokens(steps))
    stop_request.ignore()
    return end


@dataclass
class Training:
    """What the steps of one attempt share."""

    spec: TrainingSpec
    layout: Layout
    """Shape, origin and TP degree of what is trained; not its tensors."""
    engine: deepspeed.DeepSpeedEngine
    rows: Dataset
    validation: Validation
    phase: Phase
    choice: LayerChoice
    steps: int
    row_length: int
    rollbacks: tuple[Rollback, ...]
    stop_request: StopRequest
    metrics: MetricsRecorder | None

    def __post_init__(self) -> None:
        spec, shape, self.device = self.spec, self.layout.shape, self.engine.device
        self.guard = Guard(spec.config.guard)
        self.veto = install_veto(self.engine, lambda norm: self.guard.judge(self.loss, norm))
        self.loss = 0.0  # of the step under way, which the guard judges
        self.watch = LayerMetrics(self.engine.module, shape)
        self.watchdog, self.own = Watchdog(spec.out_dir, spec.config.hang_seconds), OwnTime(self.device)
        self.step_numbers = MachineMetrics(spec, shape, self.row_length, self.device)
        self.checkpointer = Checkpointer(
            spec,
            self.engine,
            trained=self.layout,
            phase=self.phase,
            steps=self.steps,
            rollbacks=len(self.rollbacks),
            recorder=self.metrics,
            progress=self.watchdog.progress,
        )

    def remember(self, start: Start) -> None:
        """Takes up what the steps before this attempt have left in metrics.jsonl, the same on all ranks."""
        lines = [read_metrics(self.spec.out_dir) if self.metrics else []]
        torch.distributed.broadcast_object_list(lines)
        for line in lines[0]:
            self.checkpointer.note_validation(line["step"], line)
        # Numbers of another model say nothing about this one's.
        first = self.phase.first
        self.guard.replay(line for line in lines[0] if line["step"] >= first)
        if self.metrics:
            listed = {"tensor_parallel": self.spec.tensor_parallel, "machines": self.step_numbers.machines}
            listed |= asdict(self.choice)
            self.metrics.event("started", start.step, position_embedding=self.phase.position_embedding, **listed)
            if self.device.type == "cuda" or self.spec.config.precision == "fp8":
                self.metrics.say(str(self.choice))
            for problem in start.set_aside:
                self.metrics.say(problem)
                self.metrics.event("checkpoint_damaged", start.step, problem=problem)

    def run(self, done: int) -> AttemptEnd:
        """Steps `done` + 1 to the end of the phase, or to a reason to end before."""
        if done == 0:
            self.record(0, self.validate(0))
        elif done == self.phase.first - 1:
            found = self.validation.measure(self.engine, self.watchdog.progress).scalars()
            if self.metrics:
                self.metrics.event("dropped", done, **found)
        ahead = ReadAhead(self.read, done + 1, self.phase.last)
        for step in range(done + 1, self.phase.last + 1):
            if end := self.step(step, ahead):
                return end
        self.checkpointer.publish()
        return AttemptEnd(reason="finished" if self.phase.last == self.steps else "drop", step=self.phase.last)

    def step(self, step: int, ahead: ReadAhead) -> AttemptEnd | None:
        """One step, its numbers, and what is due after it."""
        began, config = time.perf_counter(), self.spec.config
        if fp8 := self.engine.module.fp8:
            fp8.active = step > (config.fp8 or FP8Config()).warmup_steps
        lr = config.lr * self.lr_share(step)
        looks = bool(config.layer_numbers_every) and step % config.layer_numbers_every == 0
        self.watchdog.mark(step, "data")
        with self.own:
            batches = ahead.take(step)
        share = self.accumulate(step, batches, lr, looks)
        self.watchdog.mark(step, "exchange")
        reports = self.tell(share, ahead.waited)
        self.loss = reports.loss
        self.watchdog.mark(step, "update")
        self.engine.step()  # the veto asks the guard
        self.guard.observe(self.loss, self.veto.norm, self.veto.reason is not None)
        numbers = self.numbers(step, lr, reports, time.perf_counter() - began)
        if looks:
            numbers |= self.watch.numbers()
        if self.checkpointer.is_writing and reports.all_written:
            self.watchdog.mark(step, "publish")
            self.checkpointer.publish()
        if step % config.validation_every == 0 or step == self.phase.last:
            numbers |= self.validate(step)
        if self.guard.must_go_back:
            self.record(step, numbers)
            return self.go_back(step)
        due = self.checkpointer.is_due(step, reports)
        if due:
            self.watchdog.mark(step, "checkpoint")
            pause = self.checkpointer.save(step, self.tokens(step), calm=self.veto.reason is None)
            numbers["checkpoint_pause_seconds"] = pause
        self.record(step, numbers)
        if due and (reports.stop or not config.checkpoint_async):
            self.checkpointer.publish()
        return AttemptEnd(reason="stopped", step=step) if reports.stop and step < self.steps else None

    def read(self, step: int) -> list[Batch]:
        """This rank's micro batches of a step."""
        config, number = self.spec.config, batch_of(step, self.rollbacks, self.steps)
        return list(micro_batches(self.rows, number, config.batch, config.micro_batch, self.device))

    def lr_share(self, step: int) -> float:
        """Share of the peak learning rate: the schedule's, and what the guard has lowered it to."""
        config = self.spec.config
        scheduled = lr_factor(step, self.steps, config.schedule, config.batch * self.row_length)
        return scheduled * lr_scale_of(step, self.rollbacks)

    def tokens(self, step: int) -> int:
        """Tokens read by the end of a step."""
        return step * self.spec.config.batch * self.row_length

    def accumulate(self, step: int, batches: list[Batch], lr: float, looks: bool) -> Tensor:
        """Gradients of the global batch; a scalar whose mean over data-parallel ranks is its loss.

        `looks`: whether the numbers of layers are taken on the way.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        factor = loss_factor(batches)  # how much each counts depends on all of them
        losses = []
        for number, batch in enumerate(batches):
            if losses:
                self.engine.step()  # within the accumulation it only counts
            self.watchdog.mark(step, f"forward {number}")
            with self.own, self.watch if looks and not losses else nullcontext():
                loss = share_of_loss(self.engine, batch, factor)
            self.watchdog.mark(step, f"backward {number}")
            self.engine.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def tell(self, share: Tensor, waited: float) -> Reports:
        """What this rank has to say of the step, and what all have."""
        report = Report(
            loss=share.item(),
            stop=float(self.stop_request.name is not None),
            due=float(self.checkpointer.clock_says_so),
            save_status=self.checkpointer.status,
            own_seconds=self.own.take(),
            data_wait_seconds=waited,
            memory_bytes=memory_bytes(self.device),
        )
        reports = exchange(report, self.device)
        if reports.any_failed:
            self.checkpointer.abandon()
        return reports

    def numbers(self, step: int, lr: float, reports: Reports, seconds: float) -> dict[str, Value]:
        """The line of a step."""
        skipped = {"skipped": self.veto.reason} if self.veto.reason else {}
        of_update = {"loss": self.loss, "lr": lr, "grad_norm": self.veto.norm, **skipped, "tokens": self.tokens(step)}
        return of_update | self.step_numbers.measured(reports, seconds)

    def record(self, step: int, numbers: dict[str, Value]) -> None:
        """Writes a step's line, on the rank that does."""
        if self.metrics is None:
            return
        self.metrics.write(step, numbers)
        if step:
            self.step_numbers.name_the_slowest(step, self.metrics)
        if "skipped" in numbers:
            facts = {name: numbers[name] for name in ("loss", "grad_norm", "lr")}
            self.metrics.event("skip", step, reason=numbers["skipped"], in_a_row=self.guard.skips_in_a_row, **facts)
            self.metrics.say(f"step {step:,}: update skipped: {numbers['skipped']}")

    def validate(self, step: int) -> dict[str, Value]:
        """Numbers of a validation, all of which stand in validation.jsonl."""
        if step:  # the watch begins with the first step
            self.watchdog.mark(step, "validation")
        measured = self.validation.measure(self.engine, self.watchdog.progress)
        if self.metrics:
            write_validation(self.spec.out_dir, step, measured)
        self.checkpointer.note_validation(step, measured.scalars())
        return measured.scalars()

    def go_back(self, step: int) -> AttemptEnd:
        """Decides where the next processes go on, or that none do; rank 0's decision counts."""
        self.checkpointer.publish()
        if self.metrics is None:
            return AttemptEnd(reason="rollback", step=step)
        return go_back(self.spec, step, self.guard.skips_in_a_row, self.rollbacks, self.veto.reason, self.metrics)
