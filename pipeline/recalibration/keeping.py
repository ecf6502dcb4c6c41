"""When a training takes a checkpoint, what the checkpoint says of itself, and when it can be seen."""

import time
from collections.abc import Callable, Mapping

import deepspeed

from model_surgery.layout import Layout
from pipeline.recalibration.checkpoints.saving import Saver
from pipeline.recalibration.checkpoints.state import DeepSpeedState
from pipeline.recalibration.exchange import Reports
from pipeline.recalibration.job import Job
from pipeline.recalibration.metrics import Metrics, Value
from pipeline.recalibration.phases import Phase


class Keeping:
    """The checkpoints of one session. All ranks make every call but `note_validation` at the same step."""

    def __init__(
        self,
        job: Job,
        engine: deepspeed.DeepSpeedEngine,
        *,
        trained: Layout,
        phase: Phase,
        steps: int,
        rollbacks: int,
        metrics: Metrics | None,
        progress: Callable[[], None],
    ) -> None:
        """`trained`: shape, origin and TP degree of what is trained; `progress` is told while files are written."""
        self.saver = Saver(engine, job.checkpoints, job.config, progress)
        self._job, self._trained, self._phase, self._steps = job, trained, phase, steps
        self._rollbacks, self._metrics = rollbacks, metrics
        self._best: tuple[float, int] | None = None
        self._saved_at = time.monotonic()

    def note_validation(self, step: int, numbers: Mapping[str, Value]) -> None:
        """Remembers the step of the lowest validation loss."""
        loss = numbers.get("validation_loss")
        if step and loss is not None and (self._best is None or loss < self._best[0]):
            self._best = (loss, step)

    @property
    def clock_says_so(self) -> bool:
        """Whether `checkpoint_minutes` have passed on this rank's clock since the last one."""
        minutes = self._job.config.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def is_due(self, step: int, reports: Reports) -> bool:
        """Whether a checkpoint is taken after this step; the trained layout stands for the last one."""
        config = self._job.config
        if step == self._steps:
            return False
        is_best = config.keep_best and self._best is not None and self._best[1] == step
        return step % config.checkpoint_every == 0 or reports.due or reports.stop or is_best or step == self._phase.last

    def save(self, step: int, tokens: int, *, calm: bool) -> float:
        """Begins the checkpoint of a step; the seconds in which training stood still for it."""
        began, config = time.perf_counter(), self._job.config
        self.publish()  # one that is still being written
        self.saver.begin(
            DeepSpeedState(
                step=step,
                tokens=tokens,
                tensor_parallel=self._job.tensor_parallel,
                data_parallel=config.data_parallel,
                zero_stage=config.zero_stage,
                precision=config.dtype,
                position_embedding=self._phase.position_embedding,
                shape=self._phase.shape,
                calm=calm,
                rollbacks=self._rollbacks,
                **self._trained.origin,
            )
        )
        self._saved_at = time.monotonic()
        return time.perf_counter() - began

    def publish(self) -> None:
        """Waits for the checkpoint that is being written, if there is one, and makes it visible."""
        if self._metrics and self.saver.is_writing:
            self._metrics.sync()  # a checkpoint must not know of steps whose lines could be lost
        best = self._best[1] if self._job.config.keep_best and self._best else None
        published = self.saver.publish(best)
        if published and self._metrics:
            self._metrics.event("checkpoint", published.step, bytes=published.bytes, seconds=published.seconds)
