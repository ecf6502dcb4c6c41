"""Validations of a training that can be compared: `validation_rows` may change from one attempt to the next."""

import json
from collections.abc import Sequence
from pathlib import Path

from foundation.files import write_text
from pipeline.recalibration.attempt import JOB_FILE
from pipeline.recalibration.metrics.files import EVENTS_FILE, Line, read_events, read_metrics


def comparable_metrics(folder: Path) -> list[Line]:
    """The lines of metrics.jsonl, without validations of other held-out rows than those of the newest attempt."""
    first = comparable_from(read_events(folder))
    return [line if line["step"] >= first else _without_validation(line) for line in read_metrics(folder)]


def comparable_from(events: Sequence[Line]) -> int:
    """The first step whose validation read as many held-out rows as those of the newest attempt.

    events: lines of events.jsonl, in order. A line of metrics.jsonl is of the last attempt that began before its step.
    An attempt that did not record its rows is taken for one of other rows than an attempt that did.
    """
    begun = _starts(events)
    rows = begun[-1].get("validation_rows") if begun else None
    first = None
    for event in reversed(begun):
        if first is not None and event.get("validation_rows") != rows:
            return int(first) + 1
        first = event["step"] if first is None else min(first, event["step"])
        if first == 0:  # nothing is left of what attempts before this one measured
            return 0
    return 0


def record_earlier_rows(folder: Path) -> None:
    """Adds to the events of a training that an older version began how many held-out rows its validations read.

    Older versions left that in job.json alone, and refused to go on with another number: it is that of all their
    attempts. To be called before job.json is written anew.
    """
    events, rows = read_events(folder), _rows_of_job(folder)
    begun = _starts(events)
    if rows is None or not begun or any("validation_rows" in event for event in begun):
        return
    for event in begun:
        event["validation_rows"] = rows
    write_text(folder / EVENTS_FILE, "".join(json.dumps(event) + "\n" for event in events))


def _starts(events: Sequence[Line]) -> list[Line]:
    return [event for event in events if event["event"] == "started"]


def _rows_of_job(folder: Path) -> int | None:
    """`validation_rows` of the newest attempt; None where its job.json is gone, damaged or of another form."""
    try:
        return int(json.loads((folder / JOB_FILE).read_bytes())["config"]["validation_rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _without_validation(line: Line) -> Line:
    return {name: value for name, value in line.items() if not name.startswith("validation_")}
