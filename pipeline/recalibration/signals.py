"""A wish to stop that comes as a signal, in a training process."""

import signal
from types import FrameType

_WISHES = (signal.SIGUSR1, signal.SIGTERM)


class StopWish:
    """Set by SIGUSR1 (a scheduler's warning before its time limit) or SIGTERM (preemption); nothing is cut off."""

    def __init__(self) -> None:
        self.name: str | None = None
        for number in _WISHES:
            signal.signal(number, self._note)
        # Ctrl-C reaches every process of a terminal; the parent turns it into a wish of its own.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def ignore(self) -> None:
        """From now on no signal cuts off what is left to do; Python would let one kill it while it ends."""
        for number in _WISHES:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
