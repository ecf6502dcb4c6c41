"""Which batches and learning rates steps have after rollbacks, when there are no more, and the file."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.recalibration.guard.rollback import (
    ROLLBACKS_FILE,
    Rollback,
    batch_of,
    decide,
    lr_scale_of,
    read_rollbacks,
    write_rollbacks,
)
from pipeline.recipe.recalibration import GuardConfig

CONFIG = GuardConfig(patience=5, rollbacks=3, lr_factor=0.5)


def gone_back(*troubles: tuple[int, int], config: GuardConfig = CONFIG) -> tuple[Rollback, ...]:
    """The rollbacks of a run with trouble that ended at a step and went back to another, one after the other."""
    rollbacks: tuple[Rollback, ...] = ()
    for step, to_step in troubles:
        rollback = decide(step, to_step, rollbacks, config, reason="loss is not finite (nan)")
        assert rollback is not None
        rollbacks = (*rollbacks, rollback)
    return rollbacks


def batches(steps: range, rollbacks: tuple[Rollback, ...]) -> list[int]:
    return [batch_of(step, rollbacks, 1000) for step in steps]


def test_a_run_without_rollbacks_reads_batch_after_batch() -> None:
    assert batches(range(1, 1001), ()) == list(range(1, 1001))
    assert lr_scale_of(7, ()) == 1.0


def test_all_batches_read_up_to_the_trouble_are_passed_over() -> None:
    rollbacks = gone_back((100, 80))
    assert batches(range(79, 83), rollbacks) == [79, 80, 101, 102]


def test_no_batch_is_trained_on_twice_or_left_out_otherwise() -> None:
    """Steps go back and forth, also behind an earlier rollback and to the start."""
    troubles = [(100, 80), (150, 140), (160, 60), (170, 0)]
    rollbacks, first, read = (), 1, []
    for step, to_step in troubles:
        read += batches(range(first, step + 1), rollbacks)
        rollbacks = gone_back(*troubles[: len(rollbacks) + 1], config=CONFIG.model_copy(update={"rollbacks": 9}))
        first = to_step + 1
    read += batches(range(first, first + 50), rollbacks)
    assert read == list(range(1, len(read) + 1))


def test_steps_before_a_checkpoint_stay_as_older_rollbacks_have_them() -> None:
    once, twice = gone_back((100, 80)), gone_back((100, 80), (150, 140))
    assert batches(range(1, 141), twice) == batches(range(1, 141), once)
    assert batches(range(141, 143), twice) == [171, 172]


def test_batches_beyond_the_last_row_are_the_first_ones_again() -> None:
    rollbacks = gone_back((990, 980))
    assert batches(range(981, 1001), rollbacks) == [*range(991, 1001), *range(1, 11)]


def test_the_learning_rate_falls_where_trouble_recurs_and_stays_low() -> None:
    rollbacks = gone_back((100, 80), (105, 80), (300, 250))
    assert [rollback.lr_scale for rollback in rollbacks] == [1.0, 0.5, 0.5]
    assert [lr_scale_of(step, rollbacks) for step in (80, 81, 250, 251, 900)] == [1.0, 0.5, 0.5, 0.5, 0.5]
    beyond = gone_back((100, 80), (106, 100))
    assert lr_scale_of(101, beyond) == 1.0
    further_back = gone_back((100, 80), (105, 80), (90, 0))
    assert lr_scale_of(1, further_back) == 0.25


@pytest.mark.parametrize(
    ("changes", "step", "goes_back"),
    [
        ({}, 105, True),
        ({"rollbacks": 2}, 105, False),
        ({"recurrence": "stop"}, 105, False),
        ({"recurrence": "stop"}, 106, True),
    ],
)
def test_when_the_run_stops(changes: dict[str, Any], step: int, goes_back: bool) -> None:
    config = CONFIG.model_copy(update=changes)
    before = gone_back((50, 40), (100, 80))
    assert (decide(step, 80, before, config, reason="loss") is not None) == goes_back


def test_no_rollback_at_all_where_none_is_allowed() -> None:
    assert decide(9, 0, (), CONFIG.model_copy(update={"rollbacks": 0}), reason="loss") is None


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    assert read_rollbacks(tmp_path) == ()
    rollbacks = gone_back((100, 80), (105, 80))
    write_rollbacks(tmp_path, rollbacks)
    assert read_rollbacks(tmp_path) == rollbacks
    assert [path.name for path in tmp_path.iterdir()] == [ROLLBACKS_FILE]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: text[:40], "the whole"),
        (lambda text: text.replace('"to_step": 80', '"to_step": 100'), r"rollbacks\.0: .* to_step = 100 is not before"),
        (lambda text: text.replace('"lr_scale": 1.0', '"lr_scale": 0'), r"rollbacks\.0\.lr_scale"),
    ],
)
def test_a_damaged_file_is_refused(damage: Any, expected: str, tmp_path: Path) -> None:
    write_rollbacks(tmp_path, gone_back((100, 80)))
    path = tmp_path / ROLLBACKS_FILE
    assert json.loads(path.read_text())["rollbacks"][0]["first_batch"] == 101
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecipeError, match=expected):
        read_rollbacks(tmp_path)
