"""What a rank says of itself about every second."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank is. `count` grows with every one: a heartbeat that is read again is not taken for a new one."""

    rank: int
    host: str
    pid: int
    count: int
    step: int | None
    """The step under way; None before the first: a start may take as long as it likes."""
    order: int
    """How many marks the rank has set in this step: who has set fewer is behind."""
    phase: str
    progress: int
    """How often something within a phase has gone on."""
    ended: bool
    """Whether the rank has left the training in good order."""

    @property
    def place(self) -> tuple[int, int]:
        """(step, order) of a rank that has begun a step: a total order over ranks."""
        return (-1 if self.step is None else self.step, self.order)

    @property
    def moved(self) -> tuple[int, int, int]:
        """Differs from that of an earlier heartbeat if the rank has gone on since."""
        return (*self.place, self.progress)

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: bytes) -> "Heartbeat":
        return Heartbeat(**json.loads(text))
