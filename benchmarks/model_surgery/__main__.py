"""Measure surgery beside copying the same bytes on the same disk and beside a converter that loads everything.

Makes a random checkpoint of each model's published shape, then runs every way in a fresh process, all once, then all
once more. Before each run what the last one wrote is deleted, all is synced, and the page cache is dropped, so that
the source comes from the disk. In the first round the slices of both converters are compared by their sha256, and
read back. Everything that was written is deleted at the end. Verification of the layout is not part of the time.

Exit status: 0; 1 if slices differ; 2 if a way fails or the disk is too small.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks.data_prep import machine, measure
from benchmarks.model_surgery import checkpoints
from benchmarks.model_surgery.ways import WAYS
from model_surgery.known_models import KNOWN_MODELS
from model_surgery.layout import Layout, damaged_tensors, tensor_digest
from model_surgery.shape import ModelShape

MODELS = {name.partition("/")[2]: shape for name, shape in KNOWN_MODELS.items()}
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_SPARE = 2 * 10**9
Digests = dict[tuple[str, int], str]


@dataclasses.dataclass
class Case:
    """A way for a model at a TP degree, and what its runs took."""

    model: str
    tensor_parallel: int | None
    way: str
    nbytes: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: list[int] = dataclasses.field(default_factory=list)
    others_cores: list[float] = dataclasses.field(default_factory=list)


def main() -> int:
    arguments = parse()
    largest = max(nbytes(MODELS[name]) for name in arguments.models)
    if shutil.disk_usage(arguments.folder.parent).free < 2 * largest + _SPARE:
        say(f"{arguments.folder}: too little free space; {2 * largest / 1e9:.0f} GB are needed, and {_SPARE / 1e9:.0f}")
        return 2
    cases, differing = [], []
    for name in arguments.models:
        folder = arguments.folder / name
        try:
            say(f"{name}: making a random checkpoint of {nbytes(MODELS[name]) / 1e9:.2f} GB")
            checkpoints.make(folder / "source", MODELS[name])
            cases += measure_model(name, folder, arguments, differing)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(arguments.folder, ignore_errors=True)
    print(page(cases, differing, arguments.repeat))
    return 1 if differing else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model_surgery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A first look (a minute): --models SmolLM-360M --tensor-parallel 1 --repeat 1",
    )
    project = Path(__file__).parents[2]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--tensor-parallel", type=int, nargs="+", default=[1, 2, 8], help="TP degrees (1 2 8)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="leave some out to save time")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each case, of which the fastest counts (3)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=project / "build" / "benchmarks" / "surgery",
        help="on the disk to be measured; must not exist, takes twice the largest checkpoint (%(default)s)",
    )
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    if arguments.folder.exists():
        parser.error(f"--folder {arguments.folder}: exists, and would be deleted at the end; name a new one")
    arguments.folder.parent.mkdir(parents=True, exist_ok=True)
    return arguments


def nbytes(shape: ModelShape) -> int:
    return shape.parameters * getattr(torch, shape.dtype).itemsize


def measure_model(name: str, folder: Path, arguments: argparse.Namespace, differing: list[str]) -> list[Case]:
    """All ways of one model; fills in `differing`."""
    size = nbytes(MODELS[name])
    cases = [
        Case(name, degree, way, size) for degree in arguments.tensor_parallel for way in arguments.ways if way != "copy"
    ]
    if "copy" in arguments.ways:
        cases.insert(0, Case(name, None, "copy", size))
    digests: dict[int, Digests] = {}
    for number in range(1, arguments.repeat + 1):
        for case in cases:
            run(case, folder)
            label = f"TP {case.tensor_parallel}" if case.tensor_parallel else ""
            say(
                f"run {number}/{arguments.repeat} {name} {case.way} {label}: {case.seconds[-1]:.2f} s, "
                f"{case.peak_bytes[-1] / 2**20:.0f} MiB"
            )
            if number == 1 and case.tensor_parallel:
                result = written(folder / "out", case.way, case.tensor_parallel)
                differing += differences(case, digests.setdefault(case.tensor_parallel, result), result)
    return cases


def run(case: Case, folder: Path) -> None:
    """One run; its output stays."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    drop_page_cache(folder / "source")
    command = [sys.executable, "-m", "benchmarks.model_surgery.ways", case.way]
    command += [str(folder / "source"), str(folder / "out"), str(case.tensor_parallel or 1)]
    log = folder / "log"
    result = measure.run(command, cores=sorted(os.sched_getaffinity(0)), environment={}, log=log)
    said = json.loads(log.read_text().splitlines()[-1])
    case.seconds.append(said["seconds"])
    case.peak_bytes.append(said["peak_bytes"])
    case.cpu_seconds.append(result.cpu_seconds)
    case.others_cores.append(result.others_cores)


def drop_page_cache(source: Path) -> None:
    """Writes back what waits, then drops the source's pages; all others too where that is permitted."""
    os.sync()
    for path in source.iterdir():
        with path.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if os.access(_DROP_CACHES, os.W_OK):
        _DROP_CACHES.write_text("3")


def written(out: Path, way: str, tensor_parallel: int) -> Digests:
    """sha256 of every slice by tensor and rank, read from the disk."""
    if way == "ours":
        layout = Layout.load(out)
        damaged = dict.fromkeys(damaged_tensors(out, layout))
        return {
            (entry.target, rank): "damaged" if f"{entry.target} (TP rank {rank})" in damaged else piece.sha256
            for entry in layout.tensors
            for rank, piece in enumerate(entry.pieces)
        }
    digests = {}
    for rank in range(tensor_parallel):
        path = out / f"rank{rank}.safetensors"
        with safe_open(path, framework="pt") as handle:
            digests |= {(name, rank): tensor_digest(handle.get_tensor(name)) for name in handle.keys()}  # noqa: SIM118
    return digests


def differences(case: Case, expected: Digests, result: Digests) -> list[str]:
    return [
        f"{case.model} TP {case.tensor_parallel}: {name} of rank {rank} differs"
        for name, rank in sorted(expected.keys() | result.keys())
        if expected.get((name, rank)) != result.get((name, rank)) or result[name, rank] == "damaged"
    ]


def page(cases: list[Case], differing: list[str], repeat: int) -> str:
    """The table in Markdown, what it was measured on, and what differs."""
    lines = [
        "| model | way | TP | seconds | of copying | GB/s | CPU seconds | peak MiB | others' cores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        copies = [other for other in cases if other.way == "copy" and other.model == case.model]
        best = min(case.seconds)
        ratio = f"{best / min(copies[0].seconds):.2f}x" if copies else "—"
        lines.append(
            f"| {case.model} | {case.way} | {case.tensor_parallel or ''} | {best:.2f} | {ratio} | "
            f"{case.nbytes / best / 1e9:.2f} | {min(case.cpu_seconds):.1f} | {max(case.peak_bytes) / 2**20:.0f} | "
            f"{case.others_cores[case.seconds.index(best)]:.2f} |"
        )
    facts = machine.describe({})
    facts |= {"libraries": ", ".join(f"{name} {version(name)}" for name in ("torch", "safetensors", "numpy"))}
    facts |= {"sha256": sha256_speed(), "page cache": f"dropped before every run ({_how_dropped()})"}
    lines += ["", *(f"- {key}: {value}" for key, value in facts.items() if key != "datatrove's environment")]
    lines += [f"- fastest of {repeat} runs, largest memory of all; cores that other processes kept busy in that run"]
    lines += [
        f"- all runs, {c.model} {c.way} {c.tensor_parallel or ''}: {[round(s, 2) for s in c.seconds]}" for c in cases
    ]
    lines += ["", *(differing or ["Slices of both converters are equal, and read back as they were written."])]
    return "\n".join(lines)


def _how_dropped() -> str:
    return "drop_caches" if os.access(_DROP_CACHES, os.W_OK) else "posix_fadvise on the source's files"


def sha256_speed() -> str:
    """Bytes a second on one core, and whether the processor has instructions for it."""
    block = torch.zeros(2**28, dtype=torch.uint8)
    started = time.perf_counter()
    tensor_digest(block)
    speed = len(block) / (time.perf_counter() - started)
    has = "sha_ni" in Path("/proc/cpuinfo").read_text()
    return f"{speed / 1e9:.2f} GB/s on one core ({'with' if has else 'without'} the processor's SHA instructions)"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except measure.CommandFailed as error:
        say(f"a measured command failed: {error}")
        sys.exit(2)
