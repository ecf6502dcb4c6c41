"""What a measured process is told, and what it leaves of itself."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.recalibration.cases import Case

LR = 3e-4
BETAS = (0.9, 0.95)
EPS = 1e-8
GRADIENT_CLIP = 1.0


@dataclass(frozen=True)
class TrainerSpec:
    """One run of the Trainer's way."""

    case: Case
    model: Path  # Hugging Face folder
    rows: Path  # .npy, [rows, length + 1]
    out_dir: Path

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), default=str))

    @classmethod
    def load(cls, path: Path) -> "TrainerSpec":
        values = json.loads(path.read_text())
        case = Case(**values.pop("case"))
        return cls(case, **{name: Path(value) for name, value in values.items()})


def write_peak(out_dir: Path) -> None:
    """Leaves this rank's largest resident memory so far (VmHWM), bytes."""
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    (out_dir / f"rank-{os.environ['RANK']}.peak").write_text(str(peak))


def read_peaks(out_dir: Path) -> list[int]:
    """Bytes, of each rank."""
    return [int(path.read_text()) for path in sorted(out_dir.glob("rank-*.peak"))]
