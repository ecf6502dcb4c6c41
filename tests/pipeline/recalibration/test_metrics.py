"""metrics.jsonl: every step once, whatever a kill left; the same numbers in TensorBoard."""

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.recalibration.metrics import clock, read_events, read_metrics
from pipeline.recalibration.metrics.files import keep_steps
from pipeline.recalibration.metrics.recorder import MetricsRecorder


def numbers(loss: float) -> dict[str, float]:
    measured = {"step_seconds": 10.0, "tokens_per_second": 2000.0, "mfu": 0.42}
    return {"loss": loss, "lr": 0.1, "grad_norm": 0.5, **measured}


def write(folder: Path, done: int, steps: list[int], loss: float) -> None:
    with MetricsRecorder(folder, done=done, steps=10, description="test") as metrics:
        for step in steps:
            metrics.write(step, numbers(loss + step))


def test_a_resumed_run_has_every_step_once_in_file_and_tensorboard(tmp_path: Path) -> None:
    write(tmp_path, 0, [1, 2, 3, 4, 5], loss=0.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    write(tmp_path, 3, [4, 5, 6, 7], loss=100.0)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["loss"] for line in lines] == [1, 2, 3, 104, 105, 106, 107]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert {event.step: event.value for event in events} == {line["step"]: line["loss"] for line in lines}


def test_a_run_killed_before_its_first_checkpoint_begins_the_file_anew(tmp_path: Path) -> None:
    write(tmp_path, 0, [0, 1, 2], loss=0.0)
    write(tmp_path, 0, [0, 1], loss=100.0)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(0, 100), (1, 101)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(0, 100), (1, 101)]


def test_keep_steps_leaves_a_whole_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps({"step": step}) + "\n" for step in range(4))
    path.write_text(text)
    keep_steps(path, 3)
    assert path.read_text() == text
    keep_steps(path, 1)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]


def test_a_log_without_a_terminal_gets_a_line_now_and_then(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("pipeline.recalibration.metrics.recorder._SECONDS_BETWEEN_LINES", 0.0)
    write(tmp_path, 0, [1, 2], loss=0.0)
    last = capsys.readouterr().err.splitlines()[-1]
    numbers = "loss 2.000, grad norm 0.50, lr 1.00e-01, 2,000 tokens/s, MFU 42%"
    assert last == f"test step 2 of 10: {numbers}, 1 min 20 s left"


def test_numbers_that_are_not_finite_are_null_and_a_skip_says_why(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("pipeline.recalibration.metrics.recorder._SECONDS_BETWEEN_LINES", 0.0)
    with MetricsRecorder(tmp_path, done=0, steps=10, description="test") as metrics:
        reason = "gradient norm is not finite (inf)"
        metrics.write(1, numbers(math.nan) | {"grad_norm": math.inf, "skipped": reason, "logits": [1.0, 2.0, math.inf]})
        metrics.event("skip", 1, reason=reason, loss=math.nan, in_a_row=1)
    (line,) = read_metrics(tmp_path)
    assert (line["loss"], line["grad_norm"], line["skipped"]) == (None, None, reason)
    assert line["logits"] == [1.0, 2.0, None]
    assert f"update skipped: {reason}" in capsys.readouterr().err
    (event,) = read_events(tmp_path)
    assert (event["event"], event["step"], event["loss"], event["in_a_row"]) == ("skip", 1, None, 1)
    scalars = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"logits/layer_00", "logits/layer_01", "events/skip"} <= set(scalars.Tags()["scalars"])
    assert "loss" not in scalars.Tags()["scalars"]


def test_events_are_never_taken_off(tmp_path: Path) -> None:
    for attempt in range(2):
        with MetricsRecorder(tmp_path, done=0, steps=10, description="test") as metrics:
            metrics.event("started", 0, attempt=attempt)
    assert [event["attempt"] for event in read_events(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.6, "1 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"), (90_000, "25 h 00 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert clock(seconds) == text
