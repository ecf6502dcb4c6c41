"""One line of numbers per step in metrics.jsonl, the same in TensorBoard, and a progress bar for people."""

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

METRICS_FILE = "metrics.jsonl"
_SECONDS_BETWEEN_LINES = 30.0


class Metrics:
    """Writes the run's numbers; only rank 0 makes one. A context manager.

    On resume, lines after the resumed step are taken off, so that every step stands in the file exactly once. Without a
    checkpoint (`done` = 0) all are: the validation of step 0 is done again too.
    """

    def __init__(self, folder: Path, *, done: int, steps: int, description: str) -> None:
        self.path = folder / METRICS_FILE
        first = done + 1 if done else 0
        keep_steps(self.path, first - 1)
        self._file = self.path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        self._description, self._steps, self._said = description, steps, time.monotonic()
        self._bar = tqdm(total=steps, initial=done, desc=description, unit="step", disable=None)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._tensorboard.close()
        self.sync()
        self._file.close()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Adds the line of one step."""
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._tensorboard.add_scalar(name, value, step)
        if "loss" in numbers:
            self._show(step, numbers)

    def _show(self, step: int, numbers: dict[str, float]) -> None:
        """Moves the bar; where nobody watches a terminal (a job's log), says a line every half minute instead."""
        self._bar.set_postfix(loss=f"{numbers['loss']:.3f}", lr=f"{numbers['lr']:.1e}", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            rate = f"{numbers['tokens_per_second']:,.0f} tokens/s"
            line = f"{self._description} step {step} of {self._steps}: loss {numbers['loss']:.3f}, {rate}"
            print(line, file=sys.stderr, flush=True)

    def sync(self) -> None:
        """Lets the lines so far survive a power loss: called with every checkpoint."""
        self._file.flush()
        os.fsync(self._file.fileno())


def keep_steps(path: Path, last: int) -> None:
    """Drops the lines of steps after `last`, and a line cut off by a kill, atomically."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break  # only the last line can be cut
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl in a recalibration folder."""
    text = (folder / METRICS_FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
