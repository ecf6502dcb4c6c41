"""Writing metrics.jsonl and events.jsonl, the same in TensorBoard, and a progress bar for people."""

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from pipeline.recalibration.metrics.files import METRICS_FILE, Line, Value, append_event, as_json, keep_steps
from pipeline.recalibration.wandb_sync import copied_to_wandb

_SECONDS_BETWEEN_LINES = 30.0


class MetricsRecorder:
    """Writes the run's numbers and decisions; only rank 0 makes one. A context manager.

    On resume, lines after the resumed step are taken off, so that every step stands in metrics.jsonl exactly once.
    Without a checkpoint (`done` = 0) all are: the validation of step 0 is done again too. events.jsonl only grows: it
    tells what happened, also what happened again after a kill.
    """

    def __init__(
        self, folder: Path, *, done: int, steps: int, description: str, wandb_project: str | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second; readers of the files do not need it

        self._outside = ExitStack()
        self._outside.enter_context(copied_to_wandb(wandb_project, folder))
        self.path = folder / METRICS_FILE
        first = done + 1 if done else 0
        keep_steps(self.path, first - 1)
        self._file = self.path.open("a", encoding="utf-8")
        self._folder = folder
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        self._description, self._steps, self._said = description, steps, time.monotonic()
        self._bar = tqdm(total=steps, initial=done, desc=description, unit="step", disable=None)

    def __enter__(self) -> "MetricsRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._tensorboard.close()
        self.sync()
        self._file.close()
        self._outside.close()

    def write(self, step: int, numbers: Mapping[str, Value]) -> None:
        """Adds the line of one step; numbers that are not finite stand there as null."""
        line = as_json(numbers)
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for name, value in line.items():
            self._plot(name, value, step)
        if "loss" in line:
            self._show(step, line)

    def event(self, kind: str, step: int, **facts: Value) -> None:
        """Adds a decision, or what led to one, to events.jsonl; on disk when it returns."""
        line = append_event(self._folder, kind, step, **facts)
        self._tensorboard.add_text("events", f"{kind}: {json.dumps(line)}", step)
        self._tensorboard.add_scalar(f"events/{kind}", 1, step)

    def say(self, text: str) -> None:
        """A line for the person who watches, above the progress bar."""
        self._bar.write(f"{self._description}: {text}", file=sys.stderr)

    def _plot(self, name: str, value: Value, step: int) -> None:
        if isinstance(value, (int, float)):
            self._tensorboard.add_scalar(name, value, step)
        elif isinstance(value, list):
            for layer, number in enumerate(value):
                self._plot(f"{name}/layer_{layer:02d}", number, step)

    def _show(self, step: int, line: Line) -> None:
        """Moves the bar; where nobody watches a terminal (a job's log), says a line every half minute instead."""
        shown = progress(line)
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            left = (self._steps - step) * line["step_seconds"]
            text = f"{self._description} step {step:,} of {self._steps:,}: {shown}, {clock(left)} left"
            print(text, file=sys.stderr, flush=True)

    def sync(self) -> None:
        """Lets the lines so far survive a power loss: called with every checkpoint."""
        self._file.flush()
        os.fsync(self._file.fileno())


def progress(line: Line) -> str:
    """A step's numbers as a person reads them."""
    if "skipped" in line:
        return f"update skipped: {line['skipped']}"
    parts = [f"loss {line['loss']:.3f}", f"grad norm {line['grad_norm']:.2f}", f"lr {line['lr']:.2e}"]
    parts.append(f"{line['tokens_per_second']:,.0f} tokens/s")
    if line.get("mfu") is not None:
        parts.append(f"MFU {line['mfu']:.0%}")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """A duration as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
