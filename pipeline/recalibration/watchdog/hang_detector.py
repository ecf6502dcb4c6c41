"""The judgement over a training that stands still: no threads, no clocks, no network."""

from collections.abc import Hashable, Mapping

from pipeline.recalibration.watchdog.fault import Fault, Kind
from pipeline.recalibration.watchdog.heartbeat import Heartbeat


class AwakeClock:
    """Seconds in which this process could run.

    Machines and jobs are suspended (SIGSTOP, `scontrol suspend`). A watcher that wakes up must not take its own sleep
    for the silence of the others.
    """

    def __init__(self, longest_gap: float) -> None:
        """A gap between two readings counts for at most `longest_gap` seconds."""
        self._longest_gap = longest_gap
        self._awake = 0.0
        self._last: float | None = None

    def read(self, now: float) -> float:
        """`now`: a monotonic time, seconds."""
        if self._last is not None:
            self._awake += min(now - self._last, self._longest_gap)
        self._last = now
        return self._awake


class HangDetector:
    """One rank's view of a training: its own marks, and heartbeats of others as they come in.

    Nothing is a fault while the rank itself goes on, whatever it hears or does not hear. Clocks of hosts differ, so all
    times are this watcher's own: since when it has seen a value unchanged.
    """

    def __init__(self, rank: int, world_size: int, limit: float, store_host: str) -> None:
        """`limit`: how long ranks may stand still, seconds; `store_host`: where torchrun's store is, rank 0's machine.

        Rank 0 watches all ranks, every other one rank 0.
        """
        self._rank, self._world_size, self._limit, self._store_host = rank, world_size, limit, store_host
        self._seen: dict[Hashable, tuple[object, float]] = {}

    @property
    def watched(self) -> range:
        """The ranks whose heartbeats `judge` needs."""
        return range(self._world_size) if self._rank == 0 else range(1)

    def judge(self, now: float, own: Heartbeat, heard: Mapping[int, Heartbeat], exchanges: int) -> Fault | None:
        """Whether the training stands still, and who holds it up.

        `heard`: the newest heartbeats of the watched ranks; `exchanges`: how often the store has answered so far.
        """
        still = self._unchanged("own", own.moved, now)
        unanswered = self._unchanged("store", exchanges, now)
        standing = {rank: self._unchanged(("moved", rank), beat.moved, now) for rank, beat in heard.items()}
        silent = {rank: self._unchanged(("count", rank), beat.count, now) for rank, beat in heard.items()}
        if own.step is None or still < self._limit:
            return None
        if unanswered >= self._limit / 2:
            return self._unreachable(own, still)
        running = [beat for beat in heard.values() if not beat.ended]
        if any(beat.step is None or standing[beat.rank] < self._limit for beat in running):
            return None
        culprits = [beat for beat in running if silent[beat.rank] >= self._limit / 2]
        if culprits:
            return self._fault("silent", culprits, max(silent[beat.rank] for beat in culprits))
        if self._rank != 0 or not running:
            return None
        last = min(beat.place for beat in running)
        behind = [beat for beat in running if beat.place == last]
        return self._fault("stalled", behind, min(standing[beat.rank] for beat in behind))

    def _fault(self, kind: Kind, culprits: list[Heartbeat], seconds: float) -> Fault:
        waiting = set(range(self._world_size)) - {beat.rank for beat in culprits}
        return Fault.of(kind, culprits, seconds=seconds, waiting=waiting, found_by=self._rank)

    def _unreachable(self, own: Heartbeat, seconds: float) -> Fault:
        fault = Fault.of("unreachable", [own], seconds=seconds, waiting=[own.rank], found_by=self._rank)
        return fault.model_copy(update={"ranks": (0,), "hosts": (self._store_host,), "pids": ()})

    def _unchanged(self, key: Hashable, value: object, now: float) -> float:
        """For how long the value has been seen as it is, seconds."""
        known = self._seen.get(key)
        if known is None or known[0] != value:
            known = self._seen[key] = (value, now)
        return now - known[1]
