"""A request to stop that comes as a signal, in a training process."""

import signal
from types import FrameType

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StopRequest:
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
