"""Measure the training stage beside transformers' Trainer with DeepSpeed ZeRO-1, as the published code trains.

Both ways train the same model on the same rows in fresh processes, turn by turn, and must have the same losses. Prints
tokens/s, peak memory and their ratios for docs/performance.md. benchmarks/README.md says what is fair about it and what
is not.

Exit status: 0; 1 if the losses differ; 2 if something that it needs is missing or a way fails.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from benchmarks.recalibration import inputs, report, ways
from benchmarks.recalibration.cases import MODELS, Case, Result, plan
from pipeline.errors import StageFailed

_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Nats: in fp32 the order of sums differs, in bf16 every product is rounded, and gradients are summed otherwise too."""


def main() -> int:
    arguments = parse()
    if not (arguments.data / "text").is_dir():
        say(f"{arguments.data}: no folder text in it; give the folder of the real test data with --data")
        return 2
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = []
    for case in plan(arguments.models, arguments.ranks, arguments.precision, arguments.recompute, arguments.layers):
        results.append(measure(case, arguments))
    differing = [line for result in results if (line := difference(result))]
    page = report.page(results, differing, arguments.repeat)
    (arguments.folder / "results.md").write_text(page + "\n")
    outcome = json.dumps([dataclasses.asdict(result) for result in results], indent=1)
    (arguments.folder / "results.json").write_text(outcome)
    print(page)
    return 1 if differing else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recalibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A first look (two minutes): --models tinystories-656k --ranks 2 --precision fp32 --repeat 1",
    )
    project = Path(__file__).parents[2]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="data-parallel ranks (1 2)")
    parser.add_argument("--precision", nargs="+", choices=_TOLERANCE, default=list(_TOLERANCE), help="default: both")
    parser.add_argument(
        "--recompute",
        nargs="+",
        choices=("none", "full"),
        default=["none"],
        help="full: both ways compute every layer again in the backward pass, as published (none)",
    )
    parser.add_argument(
        "--layers", nargs="+", choices=("torch", "compiled"), default=["torch"], help="this project's (torch)"
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way, of which the fastest counts (3)")
    parser.add_argument("--data", type=Path, default=project.parent / "shared" / "data", help="%(default)s")
    parser.add_argument(
        "--folder",
        type=Path,
        default=project / "build" / "benchmarks" / "recalibration",
        help="for models, rows, runs and results; what a run made for its inputs is used again (%(default)s)",
    )
    arguments = parser.parse_args()
    arguments.data, arguments.folder = arguments.data.resolve(), arguments.folder.resolve()
    return arguments


def measure(case: Case, arguments: argparse.Namespace) -> Result:
    """All runs of a case, the ways in turn, so that a disturbance falls on both."""
    made, result = inputs.make(case, arguments.data, arguments.folder), Result(case)
    for number in range(1, arguments.repeat + 1):
        for way in ways.WAYS:
            run = ways.run(way, case, made, arguments.folder / "run")
            result.runs.setdefault(way, []).append(run)
            say(
                f"run {number}/{arguments.repeat} {case.label} {way}: {run.tokens_per_second:,.0f} tokens/s, "
                f"{run.peak_bytes / 2**20:,.0f} MiB, others {run.others_cores:.2f} cores"
            )
    return result


def difference(result: Result) -> str | None:
    """A line if the two ways did not train the same."""
    outcome = result.loss_difference("ours", "trainer")
    if outcome <= _TOLERANCE[result.case.precision]:
        return None
    return f"{result.case.label}: losses DIFFER by up to {outcome:.1e}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StageFailed as error:
        say(f"a measured run failed: {error}")
        sys.exit(2)
