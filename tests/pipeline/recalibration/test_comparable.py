"""Which validations of a training are of the same held-out rows."""

from typing import Any

import pytest

from pipeline.recalibration.metrics.comparable import comparable_from


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
        ([(0, None), (8, 7)], 0),
        ([(0, None), (8, 7), (9, 5)], 10),
    ],
)
def test_validations_are_comparable_from_the_first_session_with_the_rows_of_the_last(
    sessions: list[tuple[int, int | None]], first: int
) -> None:
    assert comparable_from(started(*sessions)) == first
