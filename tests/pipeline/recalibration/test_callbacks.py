"""The points of a step that callbacks are told of, and the line that a step leaves."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.recalibration import loop
from pipeline.recalibration.attempt import AttemptEnd
from pipeline.recalibration.callback import Callback
from pipeline.recalibration.callbacks import phase_of_step
from pipeline.recalibration.exchange import Report, Reports
from pipeline.recalibration.step import Step

POINTS = ("step_begin", "before_exchange", "before_update", "after_update", "step_end", "line_written")


class Diary(Callback):
    """Writes down what it is told of, and by whose name."""

    def __init__(self, name: str, entries: list[str], end: AttemptEnd | None = None) -> None:
        self.name, self.entries, self.end = name, entries, end
        for point in POINTS:
            setattr(self, point, lambda step, point=point: entries.append(f"{name} {point}"))

    def phase_begin(self, step: int, phase: str) -> None:
        self.entries.append(f"{self.name} begins {phase}")

    def phase_end(self, step: int, phase: str) -> None:
        self.entries.append(f"{self.name} ends {phase}")

    def reason_to_end(self, step: Step) -> AttemptEnd | None:
        self.entries.append(f"{self.name} reason_to_end")
        return self.end


class Engine:
    """An engine that writes down its updates."""

    def __init__(self, entries: list[str]) -> None:
        self.entries, self.device = entries, torch.device("cpu")
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])

    def step(self) -> None:
        self.entries.append("engine.step")

    def backward(self, loss: torch.Tensor) -> None:
        self.entries.append("engine.backward")


def training(entries: list[str], callbacks: list[Callback]) -> loop.Training:
    config = SimpleNamespace(lr=0.5, batch=4, schedule=SimpleNamespace(warmup_tokens=None, warmup_steps=2))
    recorder = SimpleNamespace(write=lambda step, line: entries.append(f"line {step}: loss {line['loss']}"))
    return loop.Training(
        spec=SimpleNamespace(config=config),
        engine=Engine(entries),
        rows=None,
        row_length=8,
        phase=SimpleNamespace(last=3),
        steps=3,
        rollbacks=(),
        callbacks=callbacks,
        recorder=recorder,
    )


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses without a model, and an exchange of one rank with itself."""
    monkeypatch.setattr(loop, "loss_factor", lambda batches: None)
    monkeypatch.setattr(loop, "share_of_loss", lambda engine, batch, factor: torch.tensor(batch))
    monkeypatch.setattr(loop, "exchange", lambda report, device: Reports((report,), 1))


@pytest.mark.usefixtures("no_model")
def test_a_step_tells_all_callbacks_of_its_points_in_order() -> None:
    entries: list[str] = []
    step = training(entries, [Diary("a", entries)])
    ahead = SimpleNamespace(take=lambda step: [2.0, 4.0], waited=0.25)
    assert step.step(1, ahead) is None
    assert step.engine.optimizer.param_groups == [{"lr": 0.25}]  # half of the warm-up
    parts = ["a step_begin", "a begins data", "a ends data"]
    parts += ["a begins forward 0", "a ends forward 0", "a begins backward 0", "engine.backward", "a ends backward 0"]
    parts += ["engine.step", "a begins forward 1", "a ends forward 1"]
    parts += ["a begins backward 1", "engine.backward", "a ends backward 1"]
    parts += ["a begins exchange", "a before_exchange", "a ends exchange", "a before_update"]
    parts += ["a begins update", "engine.step", "a ends update", "a after_update", "a step_end"]
    assert entries == [*parts, "line 1: loss 3.0", "a line_written", "a reason_to_end"]


@pytest.mark.usefixtures("no_model")
def test_callbacks_are_told_in_their_order_and_the_first_reason_to_end_counts() -> None:
    entries: list[str] = []
    reasons = [AttemptEnd(reason=reason, step=1) for reason in ("rollback", "stopped")]
    names = [Diary("a", entries), Diary("b", entries, reasons[0]), Diary("c", entries, reasons[1])]
    ahead = SimpleNamespace(take=lambda step: [1.0], waited=0.0)
    assert training(entries, list(names)).step(1, ahead) is reasons[0]
    for point in POINTS:
        assert [entry for entry in entries if entry.endswith(point)] == [f"{name} {point}" for name in "abc"]
    assert [entry for entry in entries if entry.endswith("reason_to_end")] == ["a reason_to_end", "b reason_to_end"]


def test_a_part_that_raises_is_ended() -> None:
    entries: list[str] = []
    with pytest.raises(ZeroDivisionError), phase_of_step([Diary("a", entries), Diary("b", entries)], 1, "data"):
        _ = 1 / 0
    assert entries == ["a begins data", "b begins data", "b ends data", "a ends data"]


def test_the_line_of_a_step_has_its_numbers_in_one_order() -> None:
    step = Step(number=3, is_last=False, lr=0.1, tokens=96, began=0.0, phase=lambda name: None)
    step.reports = Reports(tuple(Report(loss=loss) for loss in (1.0, 1.0, 2.0, 2.0)), 2)  # TP 2, two data-parallel
    step.grad_norm, step.machines, step.layers = 0.5, {"step_seconds": 2.0}, {"attention_logit_max": [1.0]}
    numbers = {"loss": 1.5, "lr": 0.1, "grad_norm": 0.5, "tokens": 96, "step_seconds": 2.0}
    assert list(step.line().items()) == [*numbers.items(), ("attention_logit_max", [1.0])]
    step.skipped, step.validation, step.checkpoint_pause_seconds = "a spike", {"validation_loss": 1.0}, 0.0
    names = ["loss", "lr", "grad_norm", "skipped", "tokens", "step_seconds", "attention_logit_max"]
    assert list(step.line()) == [*names, "validation_loss", "checkpoint_pause_seconds"]
