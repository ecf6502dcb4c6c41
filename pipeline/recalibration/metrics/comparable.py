"""Validations of a training that can be compared: `validation_rows` may change from one attempt to the next."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.recalibration.metrics.files import Line, read_events, read_metrics


def comparable_metrics(folder: Path) -> list[Line]:
    """The lines of metrics.jsonl, without validations of other held-out rows than those of the newest attempt."""
    first = comparable_from(read_events(folder))
    return [line if line["step"] >= first else _without_validation(line) for line in read_metrics(folder)]


def comparable_from(events: Sequence[Line]) -> int:
    """The first step whose validation read as many held-out rows as those of the newest attempt.

    events: lines of events.jsonl, in order. A line of metrics.jsonl is of the last attempt that began before its step.
    An attempt that did not record its rows had those of the others.
    """
    begun = [event for event in events if event["event"] == "started"]
    rows = begun[-1].get("validation_rows") if begun else None
    first = None
    for event in reversed(begun):
        if first is not None and event.get("validation_rows", rows) != rows:
            return int(first) + 1
        first = event["step"] if first is None else min(first, event["step"])
        if first == 0:  # nothing is left of what attempts before this one measured
            return 0
    return 0


def _without_validation(line: Line) -> Line:
    return {name: value for name, value in line.items() if not name.startswith("validation_")}
