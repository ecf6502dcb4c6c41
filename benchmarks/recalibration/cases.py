"""What is compared: models, row lengths and settings, and what their runs took."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median


@dataclass(frozen=True)
class Case:
    """One training that both ways do. Batches are of sequences."""

    model: str
    length: int
    batch: int
    micro_batch: int
    steps: int
    warm_up: int  # first steps that are not timed: buffers are allocated and kernels chosen in them
    ranks: int
    precision: str
    recompute: str
    layers: str = "torch"  # this project's

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.length

    @property
    def label(self) -> str:
        settings = f"{self.precision} recompute={self.recompute} layers={self.layers}"
        return f"{self.model} {self.length} x{self.ranks} {settings}"


_SIZES = {
    "tinystories-656k": ({"length": 512, "batch": 16, "micro_batch": 8, "steps": 60, "warm_up": 10},),
    "llama-58m": (
        {"length": 512, "batch": 4, "micro_batch": 2, "steps": 14, "warm_up": 4},
        {"length": 2048, "batch": 2, "micro_batch": 1, "steps": 10, "warm_up": 3},
    ),
}
MODELS = tuple(_SIZES)


def plan(
    models: Sequence[str],
    ranks: Sequence[int],
    precisions: Sequence[str],
    recompute: Sequence[str] = ("none",),
    layers: Sequence[str] = ("torch",),
) -> Iterator[Case]:
    """All combinations; compiled layers are never recomputed."""
    for model in models:
        for size in _SIZES[model]:
            for count in ranks:
                for precision in precisions:
                    for kept, kind in product(recompute, layers):
                        if (kept, kind) != ("full", "compiled"):
                            settings = {"precision": precision, "recompute": kept, "layers": kind}
                            yield Case(model=model, **size, ranks=count, **settings)


@dataclass(frozen=True)
class Run:
    """One run of one way."""

    tokens_per_second: float  # over the steps after the warm-up, logging included
    losses: list[float]  # of every step, nats
    peak_bytes: int  # largest resident memory of every rank (VmHWM), summed
    others_cores: float  # cores that the rest of the machine kept busy meanwhile
    data_share: float | None  # of the timed steps, spent waiting for rows; None where it is not told


@dataclass
class Result:
    """All runs of a case, by way, in the order in which they ran."""

    case: Case
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def best(self, way: str) -> Run:
        return max(self.runs[way], key=lambda run: run.tokens_per_second)

    def peak(self, way: str) -> int:
        return max(run.peak_bytes for run in self.runs[way])

    def speed_ratio(self, way: str, other: str) -> float:
        """Fastest run of each."""
        return self.best(way).tokens_per_second / self.best(other).tokens_per_second

    def pair_ratios(self, way: str, other: str) -> list[float]:
        """Ratio of the runs that followed each other: what a disturbance of one pair does to the figure."""
        pairs = zip(self.runs[way], self.runs[other], strict=True)
        return [a.tokens_per_second / b.tokens_per_second for a, b in pairs]

    def median_ratio(self, way: str, other: str) -> float:
        return median(self.pair_ratios(way, other))

    def loss_difference(self, way: str, other: str) -> float:
        """Largest difference of a step's loss, nats."""
        pairs = zip(self.runs[way][0].losses, self.runs[other][0].losses, strict=True)
        return max(abs(a - b) for a, b in pairs)
