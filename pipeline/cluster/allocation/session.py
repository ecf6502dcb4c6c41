"""One start of torchrun on all nodes of a training, as the first node sees it."""

import time
from collections.abc import Sequence

from pipeline.cluster.allocation.gathering import Followers
from pipeline.launch.processes import Failure, Torchrun

FAILING_SECONDS = 20.0
"""How long ranks of other nodes have to fail by themselves, and say how, once one has."""
_ENDING_SECONDS = 60.0
_BETWEEN_SECONDS = 0.1


class Session:
    """Hears which nodes' ranks have ended, and how."""

    def __init__(self, followers: Followers, ranks: Sequence[int]) -> None:
        """ranks: those of the nodes that take part."""
        self._followers, self._running = followers, set(ranks)
        self._failures: list[Failure] = []
        self._first_trouble: float | None = None

    def watch(self, own: Torchrun) -> None:
        """Hears what other nodes say; ends the ranks here once they have waited long enough for a failed node."""
        self._hear()
        if self._first_trouble is not None and time.monotonic() - self._first_trouble > FAILING_SECONDS:
            own.process.kill()

    def finish(self, own: Torchrun) -> None:
        """After the ranks here have ended: those of all other nodes do too, or are made to."""
        if failure := own.failure():
            self._note(failure)
        self._hear_for(_ENDING_SECONDS if self._first_trouble is None else FAILING_SECONDS)
        for rank in self._running:
            self._followers.tell(rank, "end")
        self._hear_for(FAILING_SECONDS)
        for rank in self._running:
            self._followers.lose(rank)

    def first_failure(self) -> Failure | None:
        """By cause and then by time."""
        return min(self._failures, key=lambda failure: (failure.of_others, failure.time), default=None)

    def _hear_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._running and time.monotonic() < end:
            self._hear()
            time.sleep(_BETWEEN_SECONDS)

    def _hear(self) -> None:
        for rank in sorted(self._running):
            try:
                message = self._followers.hear(rank)
            except ConnectionError:
                self._followers.lose(rank)
                self._running.discard(rank)
                self._mark_trouble()
                continue
            if message and message["kind"] == "ended":
                self._running.discard(rank)
                if message["failure"]:
                    self._note(Failure(**message["failure"]))

    def _note(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._mark_trouble()

    def _mark_trouble(self) -> None:
        if self._first_trouble is None:
            self._first_trouble = time.monotonic()
