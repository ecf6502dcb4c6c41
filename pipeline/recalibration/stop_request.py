"""A request to stop that comes as a signal, in a training process."""

import signal
from types import FrameType

from pipeline.recalibration.attempt import AttemptEnd
from pipeline.recalibration.callback import Callback
from pipeline.recalibration.step import Step

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StopRequest(Callback):
    """Set by SIGUSR1 (a scheduler's warning before its time limit) or SIGTERM (preemption); nothing is cut off."""

    def __init__(self) -> None:
        self.name: str | None = None
        """Of the last signal."""
        for number in _SIGNALS:
            signal.signal(number, self._note)
        # Ctrl-C reaches every process of a terminal; the parent turns it into a request of its own.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def ignore(self) -> None:
        """From now on no signal cuts off what is left to do; Python would let one kill it while it ends."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def before_exchange(self, step: Step) -> None:
        step.report.stop = float(self.name is not None)

    def reason_to_end(self, step: Step) -> AttemptEnd | None:
        """The step's checkpoint is there; after the last step there is nothing to go on with."""
        return AttemptEnd(reason="stopped", step=step.number) if step.reports.stop and not step.is_last else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
