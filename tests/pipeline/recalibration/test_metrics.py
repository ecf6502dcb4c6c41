"""metrics.jsonl: every step once, whatever a kill left; the same numbers in TensorBoard."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.recalibration.metrics import Metrics, keep_steps, read_metrics


def write(folder: Path, done: int, steps: list[int], loss: float) -> None:
    with Metrics(folder, done=done, steps=10, description="test") as metrics:
        for step in steps:
            metrics.write(step, {"loss": loss + step, "lr": 0.1, "tokens_per_second": 2000.0})


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
    monkeypatch.setattr("pipeline.recalibration.metrics._SECONDS_BETWEEN_LINES", 0.0)
    write(tmp_path, 0, [1, 2], loss=0.0)
    assert capsys.readouterr().err.splitlines()[-1] == "test step 2 of 10: loss 2.000, 2,000 tokens/s"
