"""What is timed, each in a process of its own: `python -m benchmarks.model_surgery.ways WAY SOURCE OUT TP`.

Prints one line of JSON: seconds of the work alone, without the start of Python and torch, and the peak resident memory.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

from foundation.files import sync_folder
from model_surgery.architectures import rules
from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.partition import join, split
from model_surgery.shape import read_shape


def ours(source: Path, out: Path, tensor_parallel: int) -> None:
    """The surgery stage's conversion: checks, digests, one slice after the other, synced."""
    convert(SurgeryConfig(tensor_parallel=tensor_parallel), source=source, out_dir=out)


def everything(source: Path, out: Path, tensor_parallel: int) -> None:
    """The usual converter: a state dict of all files, cut into one state dict per rank, each saved. Nothing is checked.

    A source is let go as soon as it is cut, which is kinder to memory than most.
    """
    state = {name: tensor for path in sorted(source.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    shape = read_shape(source)
    ranks: list[dict] = [{} for _ in range(tensor_parallel)]
    for rule in rules(shape):
        joined = join(tuple(state.pop(name) for name in rule.sources), rule.join, shape)
        for rank, piece in zip(ranks, split(joined, rule.join, shape, tensor_parallel), strict=True):
            rank[rule.target] = piece
    out.mkdir()
    for number, rank in enumerate(ranks):
        save_file(rank, out / f"rank{number}.safetensors")
        rank.clear()
        _sync(out / f"rank{number}.safetensors")
    sync_folder(out)


def copy(source: Path, out: Path, tensor_parallel: int) -> None:
    """The same bytes by the operating system (sendfile), synced."""
    out.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, out / path.name)
        _sync(out / path.name)
    sync_folder(out)


WAYS = {way.__name__: way for way in (ours, everything, copy)}


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _peak_bytes() -> int:
    """Largest resident memory of this process so far, pages of mapped files included (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    way, source, out, tensor_parallel = sys.argv[1:]
    started = time.perf_counter()
    WAYS[way](Path(source), Path(out), int(tensor_parallel))
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_bytes": _peak_bytes()}))


if __name__ == "__main__":
    main()
