"""The checkpoints of a training: when one is taken, what it says of itself, and when it can be seen."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch

from foundation.files import write_json
from model_surgery.layout import Layout
from pipeline.errors import StageFailed
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.callback import Callback
from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.checkpoints.fp8 import FP8_KEY, scales_of
from pipeline.recalibration.checkpoints.state import STATE_FILE, DeepSpeedState, StoredFile
from pipeline.recalibration.checkpoints.writer import FileWriter
from pipeline.recalibration.metrics.files import Line
from pipeline.recalibration.metrics.recorder import MetricsRecorder
from pipeline.recalibration.phases import Phase
from pipeline.recalibration.step import Step


@dataclass(frozen=True)
class Published:
    """A checkpoint that has become visible."""

    step: int
    bytes: int
    seconds: float
    """From its begin, most of them beside the training."""


class Checkpointer(Callback):
    """Takes checkpoints while training goes on.

    All ranks write their files beside the others; only a whole checkpoint gets its name.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        engine: deepspeed.DeepSpeedEngine,
        *,
        trained: Layout,
        phase: Phase,
        rollbacks: int,
        recorder: MetricsRecorder | None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`trained`: shape, origin and TP degree of what is trained; `progress` is told while files are written."""
        self._spec, self._config, self._engine = spec, spec.config, engine
        self._trained, self._phase, self._rollbacks, self._recorder = trained, phase, rollbacks, recorder
        self._writer = FileWriter(asynchronous=spec.config.checkpoint_async, progress=progress)
        engine.checkpoint_engine = self._writer
        self._state: DeepSpeedState | None = None
        """Of the checkpoint that has been begun and not published."""
        self._best: tuple[float, int] | None = None
        """The lowest validation loss and its step."""
        self._began = 0.0
        self._saved_at = time.monotonic()

    def attempt_begin(self, done: int, history: list[Line]) -> None:
        for line in history:
            self._note_validation(line["step"], line)

    def before_exchange(self, step: Step) -> None:
        step.report.save_status = self._writer.status
        minutes = self._config.checkpoint_minutes
        is_due = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        step.report.due = float(is_due)

    def before_update(self, step: Step) -> None:
        """Raises: what writing a checkpoint's files raised on the rank where it did, StageFailed on the others."""
        if step.reports.any_failed:
            self._writer.finish()
            raise StageFailed("another rank could not write its part of a checkpoint; its message stands above")

    def after_update(self, step: Step) -> None:
        if self._state is not None and step.reports.all_written:
            with step.phase("publish"):
                self.publish()

    def step_end(self, step: Step) -> None:
        self._note_validation(step.number, step.validation)
        if not step.goes_back and self._is_due(step):
            with step.phase("checkpoint"):
                step.checkpoint_pause_seconds = self._save(step)

    def line_written(self, step: Step) -> None:
        """A checkpoint is visible before the attempt may end; where it was not written beside, before the next step."""
        taken = step.checkpoint_pause_seconds is not None
        if step.goes_back or (taken and (step.reports.stop or not self._config.checkpoint_async)):
            self.publish()

    def attempt_end(self) -> None:
        self.publish()

    def _note_validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Remembers the step of the lowest validation loss."""
        loss = metrics.get("validation_loss")
        if step and loss is not None and (self._best is None or loss < self._best[0]):
            self._best = (loss, step)

    def _is_due(self, step: Step) -> bool:
        """Whether a checkpoint is taken after this step; the trained layout stands for the last one."""
        if step.is_last:
            return False
        is_best = self._config.keep_best and self._best is not None and self._best[1] == step.number
        is_regular = step.number % self._config.checkpoint_every == 0 or step.number == self._phase.last
        return is_regular or is_best or step.reports.due or step.reports.stop

    def _save(self, step: Step) -> float:
        """Begins the checkpoint of a step; the seconds in which training stood still for it."""
        began, config = time.perf_counter(), self._config
        self.publish()  # one that is still being written
        self._begin(
            DeepSpeedState(
                step=step.number,
                tokens=step.tokens,
                tensor_parallel=self._spec.tensor_parallel,
                data_parallel=config.data_parallel,
                zero_stage=config.zero_stage,
                precision=config.dtype,
                position_embedding=self._phase.position_embedding,
                shape=self._phase.shape,
                calm=step.skipped is None,
                rollbacks=self._rollbacks,
                **self._trained.origin,
            )
        )
        self._saved_at = time.monotonic()
        return time.perf_counter() - began

    def publish(self) -> None:
        """Waits for the checkpoint that is being written, if there is one, and makes it visible."""
        if (state := self._state) is None:
            return
        if self._recorder:
            self._recorder.sync()  # a checkpoint must not know of steps whose lines could be lost
        gathered = _on_rank_0(self._writer.finish())
        self._state, published = None, None
        if gathered is not None:
            files = {name: file for rank in gathered for name, file in rank.items()}
            published = self._publish(state.model_copy(update={"files": files}))
        torch.distributed.barrier()
        if published and self._recorder:
            self._recorder.event("checkpoint", published.step, bytes=published.bytes, seconds=published.seconds)

    def _begin(self, state: DeepSpeedState) -> None:
        """Takes the state of this step; nothing on the disk looks like a checkpoint before `publish`."""
        self._began = time.perf_counter()
        scales = scales_of(self._engine.module)
        self._engine.save_checkpoint(
            str(self._spec.checkpoints),
            tag=folders.partial_name(state.step),
            client_state={FP8_KEY: scales} if scales else {},
            save_latest=False,
        )
        self._state = state

    def _publish(self, state: DeepSpeedState) -> Published:
        """Gives a written checkpoint its state and its name, and removes those that are not kept; rank 0 alone."""
        folder, config = self._spec.checkpoints, self._config
        write_json(folder / folders.partial_name(state.step) / STATE_FILE, state.model_dump(mode="json"))
        folders.publish(folder, state.step)
        best = self._best[1] if config.keep_best and self._best else None
        checkpoints = {folders.step_of(path): path for path in folders.complete(folder)}
        kept = folders.kept(checkpoints, newest=config.keep_checkpoints, every=config.keep_every, best=best)
        for step in checkpoints.keys() - kept:
            folders.remove(checkpoints[step])
        seconds = time.perf_counter() - self._began
        return Published(state.step, sum(file.bytes for file in state.files.values()), seconds)


def _on_rank_0(files: dict[str, StoredFile]) -> list[dict[str, StoredFile]] | None:
    """The files of all ranks, on rank 0; None elsewhere. All ranks must call it."""
    is_first = torch.distributed.get_rank() == 0
    gathered: list[dict[str, StoredFile]] | None = [{}] * torch.distributed.get_world_size() if is_first else None
    torch.distributed.gather_object(files, gathered)
    return gathered
