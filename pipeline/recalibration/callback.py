"""Where something hooks into a training: every concern beside the step itself is a callback."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a process that starts trainings knows the watchdog's file, and loads no model code for it
    from pipeline.recalibration.attempt import AttemptEnd
    from pipeline.recalibration.metrics.files import Line
    from pipeline.recalibration.step import Step


class Callback:
    """A concern of a training. What a subclass does not define does nothing.

    All ranks are told of all points at the same steps, callbacks in the order of `callbacks.callbacks_of`; so any of
    these methods may hold a collective. A step's points are those from `step_begin` to `reason_to_end`, in this order.
    """

    def attempt_begin(self, done: int, history: "list[Line]") -> None:
        """Training goes on after step `done`; `history`: the lines of metrics.jsonl so far, the same on all ranks."""

    def step_begin(self, step: "Step") -> None:
        """Before anything of the step."""

    def phase_begin(self, step: int, phase: str) -> None:
        """A part of a step: data, forward 0, backward 0, ..., exchange, update, or one that a callback names."""

    def phase_end(self, step: int, phase: str) -> None:
        """It is through, or has raised."""

    def before_exchange(self, step: "Step") -> None:
        """Gradients are there. What this rank has to tell the others goes into `step.report`."""

    def before_update(self, step: "Step") -> None:
        """All ranks' reports and the loss of the global batch are known; nothing is changed yet."""

    def after_update(self, step: "Step") -> None:
        """The update was made, or left out. What is measured of the step goes into `step`."""

    def step_end(self, step: "Step") -> None:
        """The last additions to `step`, whose line is written next."""

    def line_written(self, step: "Step") -> None:
        """The step stands in metrics.jsonl."""

    def reason_to_end(self, step: "Step") -> "AttemptEnd | None":
        """Why the attempt ends after this step; the first callback with a reason has the word."""

    def attempt_end(self) -> None:
        """The last step of the attempt's phase is through."""
