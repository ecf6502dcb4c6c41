"""The ranks' heartbeats and their verdict in torchrun's own store, which lives on when a rank is frozen."""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from pipeline.recalibration.watchdog.fault import Fault
from pipeline.recalibration.watchdog.heartbeat import Heartbeat

log = logging.getLogger(__name__)

_VERDICT = "verdict"
_GOODBYE_SECONDS = 10.0
"""A thread that is in the store's C++ when Python ends takes the process with it (SIGABRT). A frozen store keeps it."""


class HeartbeatChannel:
    """A thread that sends this rank's heartbeats to the store and reads those of others.

    All calls of the store are made in this one: those that wait for a frozen store never return, whatever the time-out
    (torch 2.13). What is heard is left in attributes; an error of the store ends the thread and nothing else.
    """

    def __init__(
        self, rank: int, watched: Iterable[int], interval: float, heartbeat: Callable[[int, bool], Heartbeat]
    ) -> None:
        """`heartbeat` makes number n of them, the last one with True.

        watched: ranks to listen to. interval: seconds between heartbeats.
        """
        self._rank, self._watched, self._interval, self._heartbeat = rank, list(watched), interval, heartbeat
        self._over = threading.Event()
        self._in_good_order = False
        self._thread = threading.Thread(target=self._talk, name="watchdog-heartbeats", daemon=True)
        self.exchanges = 0
        """How often the store has answered."""
        self.heard: dict[int, Heartbeat] = {}
        """The newest heartbeats of the watched ranks; empty until each has sent one."""
        self.proposed: Fault | None = None
        """What this rank holds against others; the first proposal of any rank becomes the verdict."""
        self.verdict: Fault | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, in_good_order: bool) -> None:
        """Sends the last heartbeat, if the store is there; in good order: nobody is to wait for this rank."""
        self._in_good_order = in_good_order
        self._over.set()
        self._thread.join(_GOODBYE_SECONDS)

    def _talk(self) -> None:
        try:
            store = connect()
            self._exchange(store)
            while not self._over.wait(self._interval):
                self._exchange(store)
            self._send(store, self._in_good_order)
        except RuntimeError as error:  # torch.distributed.DistError, and what its C++ raises elsewhere
            log.warning("rank %d no longer hears the other ranks: %s", self._rank, error)

    def _exchange(self, store: Store) -> None:
        self._send(store, ended=False)
        # `get` waits for keys that are not there yet.
        keys = [_key(rank) for rank in self._watched]
        if store.check(keys):
            self.heard = {beat.rank: beat for beat in map(Heartbeat.decode, store.multi_get(keys))}
        if self.proposed is not None:
            store.compare_set(_VERDICT, "", self.proposed.model_dump_json())
        if self.verdict is None and store.check([_VERDICT]):
            self.verdict = Fault.model_validate_json(store.get(_VERDICT))
        self.exchanges += 1

    def _send(self, store: Store, ended: bool) -> None:
        store.set(_key(self._rank), self._heartbeat(self.exchanges, ended).encode())


def connect() -> Store:
    """A client of its own to the store that torchrun's agent of the first node keeps.

    torchrun names it in MASTER_ADDR and MASTER_PORT (torch.distributed.elastic.rendezvous: `RendezvousStoreInfo`).
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=300))
    return PrefixStore(f"drope/watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _key(rank: int) -> str:
    return f"rank-{rank}"
