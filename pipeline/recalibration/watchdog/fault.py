"""The diagnosis of a training that stands still: one line for people, one file for the process that started it."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from foundation.files import write_json
from pipeline.recalibration.watchdog.heartbeat import Heartbeat

FAULT_FILE = "hang.json"
STACKS_FOLDER = "stacks"


Kind = Literal["silent", "stalled", "unreachable"]


class Fault(BaseModel):
    """Which ranks hold up a training, and where.

    silent: they do not answer at all (frozen, or their machine is gone). stalled: they answer and do not go on.
    unreachable: nothing is heard of anybody, since the machine that keeps torchrun's store is gone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    """Of each of the ranks."""
    pids: tuple[int, ...]
    """Of each of the ranks, on its host."""
    step: int
    """The step that the ranks were last known to be in; the first one, where they differ."""
    phase: str
    seconds: float
    """How long they had stood still when it was noticed."""
    waiting: tuple[int, ...]
    """The ranks that have to wait for them."""
    found_by: int
    """The rank that noticed first."""

    @classmethod
    def of(
        cls,
        kind: Kind,
        culprits: Iterable[Heartbeat],
        *,
        seconds: float,
        waiting: Iterable[int],
        found_by: int,
    ) -> "Fault":
        """`culprits` have begun a step."""
        ordered = sorted(culprits, key=lambda beat: beat.rank)
        last = min(ordered, key=lambda beat: beat.place)
        return cls(
            kind=kind,
            ranks=tuple(beat.rank for beat in ordered),
            hosts=tuple(beat.host for beat in ordered),
            pids=tuple(beat.pid for beat in ordered),
            step=last.place[0],
            phase=last.phase,
            seconds=round(seconds, 1),
            waiting=tuple(sorted(waiting)),
            found_by=found_by,
        )

    @property
    def stacks(self) -> str:
        """The folder, within a training's, that holds where each rank stood: rank-NNNNN.txt."""
        return f"{STACKS_FOLDER}/step-{self.step:08d}"

    @property
    def line(self) -> str:
        waiting = f"; {ranks_in_words(self.waiting)} wait{'' if len(self.waiting) > 1 else 's'}" if self.waiting else ""
        return (
            f"{self._what()}{waiting}; where each stands: {self.stacks}; the job ends, "
            "the next one goes on from the newest checkpoint"
        )

    def _what(self) -> str:
        where = f"step {self.step:,} ({self.phase})"
        if self.kind == "silent":
            return f"{self._who()} stopped answering {self.seconds:.0f} s ago, last heard in {where}"
        if self.kind == "unreachable":
            lost = f"the machine of {self._who()} cannot be reached"
            return f"{lost}; nothing has moved since {where} for {self.seconds:.0f} s"
        if self.waiting or len(self.ranks) == 1:
            return f"{self._who()} made no progress in {where} for {self.seconds:.0f} s"
        return f"all {len(self.ranks)} ranks stand at the same point of {where} for {self.seconds:.0f} s"

    def _who(self) -> str:
        hosts = dict.fromkeys(self.hosts)
        pid = f", pid {self.pids[0]}" if len(self.pids) == 1 else ""
        return f"{ranks_in_words(self.ranks)} (host {', '.join(hosts)}{pid})"

    def save(self, out_dir: Path) -> None:
        write_json(out_dir / FAULT_FILE, self.model_dump())

    @staticmethod
    def take(out_dir: Path) -> "Fault | None":
        """What the last processes left in a training's folder, which is then removed."""
        path = out_dir / FAULT_FILE
        if not path.is_file():
            return None
        fault = Fault.model_validate_json(path.read_bytes())
        path.unlink()
        return fault


def ranks_in_words(ranks: Iterable[int]) -> str:
    """'rank 3' or 'ranks 0-2, 4': neighbours are joined."""
    ordered = sorted(ranks)
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(ordered), key=lambda item: item[1] - item[0])]
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' if len(ordered) > 1 else ''} {words}"
