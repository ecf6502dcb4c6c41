"""The files of JSON lines in a training's folder: metrics.jsonl, events.jsonl, validation.jsonl."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundation.files import append_line, write_text

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
VALIDATION_FILE = "validation.jsonl"
MEASURED = frozenset(
    {
        *("step_seconds", "tokens_per_second", "tokens_per_second_per_device", "mfu", "data_wait_seconds"),
        *("checkpoint_pause_seconds", "memory_bytes", "slowest_rank", "slowest_host"),
        *("own_seconds_median", "own_seconds_max"),
    }
)
"""Numbers of a line that clocks and machines decide; all others are the same in every run of the same training."""
Value = float | str | Sequence[float | str | None] | None
"""What a name stands for in a line."""
Line = dict[str, Any]
"""A line of one of these files, as JSON has it."""


def as_json(values: Mapping[str, Value]) -> Line:
    """The values with None in place of numbers that JSON does not have."""
    return {name: finite(value) for name, value in values.items()}


def finite(value: Value) -> Value:
    """The value, or None in place of a number that is not finite; so in a list."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return _finite(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_event(folder: Path, kind: str, step: int, **facts: Value) -> Line:
    """Adds a line to a training's events.jsonl, on disk when it returns; its facts as they stand there."""
    values = as_json(facts)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(folder / EVENTS_FILE, json.dumps({"time": now, "step": step, "event": kind, **values}))
    return values


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
    write_text(path, "".join(kept))


def read_metrics(folder: Path) -> list[Line]:
    """The lines of metrics.jsonl in a training's folder."""
    return read_lines(folder / METRICS_FILE)


def read_events(folder: Path) -> list[Line]:
    """The lines of events.jsonl in a training's folder."""
    return read_lines(folder / EVENTS_FILE)


def read_validation(folder: Path) -> list[Line]:
    """The lines of validation.jsonl in a training's folder."""
    return read_lines(folder / VALIDATION_FILE)


def read_lines(path: Path) -> list[Line]:
    """The whole lines of a file of JSON lines; empty if there is none."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
