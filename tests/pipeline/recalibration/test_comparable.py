"""Which validations of a training are of the same held-out rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.recalibration.metrics.comparable import comparable_from, comparable_metrics, record_earlier_rows
from pipeline.recalibration.metrics.files import append_event, read_events
from pipeline.recalibration.run import losses_before_and_after

ROWS_OF_JOB = json.dumps({"config": {"validation_rows": 7}})


def started(*sessions: tuple[int, int | None]) -> list[dict[str, Any]]:
    """Events of sessions: the step that each went on from, and its validation rows (None: not recorded)."""
    events: list[dict[str, Any]] = []
    for step, rows in sessions:
        events.append({"event": "started", "step": step} | ({} if rows is None else {"validation_rows": rows}))
        events.append({"event": "checkpoint", "step": step + 4})
    return events


@pytest.mark.parametrize(
    ("sessions", "first"),
    [
        ([], 0),
        ([(0, 7)], 0),
        ([(0, 7), (8, 7)], 0),
        ([(0, 7), (8, 5)], 9),
        ([(0, 7), (8, 5), (12, 5)], 9),
        ([(0, 7), (8, 5), (4, 5)], 5),  # gone back: the steps from 5 on are done again
        ([(0, 7), (4, 5), (8, 7)], 9),
        ([(0, 7), (4, 5), (0, 5)], 0),  # begun anew
        ([(6, 7), (9, 7)], 0),  # a branch goes on with what its origin measured
        ([(0, None), (8, None)], 0),
        ([(0, None), (8, 7)], 9),
        ([(0, 7), (8, None)], 9),
        ([(0, None), (0, 7)], 0),
        ([(0, None), (8, 7), (9, 5)], 10),
    ],
)
def test_validations_are_comparable_from_the_first_session_with_the_rows_of_the_last(
    sessions: list[tuple[int, int | None]], first: int
) -> None:
    assert comparable_from(started(*sessions)) == first


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("job", "rows", "before"),
    [
        (ROWS_OF_JOB, 7, 3.0),
        (ROWS_OF_JOB, 5, None),
        (None, 7, None),
        ("", 7, None),
        ('{"config": {}}', 7, None),
    ],
)
def test_a_training_of_an_older_version_goes_on(
    tmp_path: Path, job: str | None, rows: int, before: float | None
) -> None:
    """Its events do not have the rows of its validations; where its job.json has them, equal ones are compared."""
    write_lines(tmp_path / "events.jsonl", started((0, None), (4, None)))
    write_lines(tmp_path / "metrics.jsonl", [{"step": 0, "validation_loss": 3.0}, {"step": 9, "validation_loss": 2.0}])
    if job is not None:
        (tmp_path / "job.json").write_text(job)
    record_earlier_rows(tmp_path)
    append_event(tmp_path, "started", 8, validation_rows=rows)
    losses = losses_before_and_after(comparable_metrics(tmp_path))
    assert losses == {"validation_loss_before": before, "validation_loss_after": 2.0}


def test_rows_that_attempts_recorded_stay(tmp_path: Path) -> None:
    """job.json is of the newest attempt alone."""
    events = started((0, None), (4, 5), (8, 7))
    write_lines(tmp_path / "events.jsonl", events)
    (tmp_path / "job.json").write_text(ROWS_OF_JOB)
    record_earlier_rows(tmp_path)
    assert read_events(tmp_path) == events


def test_a_training_that_goes_on_after_its_last_step_may_have_no_comparable_validation() -> None:
    nothing = {"validation_loss_before": None, "validation_loss_after": None}
    assert losses_before_and_after([{"step": 10, "loss": 2.0}]) == nothing
