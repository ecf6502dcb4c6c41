"""What guard, metrics and watching cost, and how long a step waits for its rows.

Trains as the stage does, on two data-parallel ranks, with every part timed inside the training, and prints
milliseconds per step and their share of the step as a table for docs/performance.md. The largest of the ranks counts.
Not in it: threads beside the training (the watchdog's, TensorBoard's writer); their work is in the step's time.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from benchmarks.recalibration import inputs, ways
from benchmarks.recalibration.cases import MODELS, Case, plan
from benchmarks.recalibration.watched_way import PARTS
from pipeline.errors import StageFailed
from pipeline.recalibration.metrics import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recalibration.overhead", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["bf16"], help="default: bf16")
    project = Path(__file__).parents[2]
    parser.add_argument("--data", type=Path, default=project.parent / "shared" / "data", help="%(default)s")
    folder = project / "build" / "benchmarks" / "recalibration"
    parser.add_argument("--folder", type=Path, default=folder, help="for inputs and runs (%(default)s)")
    arguments = parser.parse_args()
    print("| model | row | precision | step, ms | " + " | ".join(PARTS) + " | all of it | data wait |")
    print("|" + "---|" * (len(PARTS) + 6))
    for case in plan(arguments.models, [2], arguments.precision):
        print(measured(case, inputs.make(case, arguments.data, arguments.folder), arguments.folder / "watched"))


def measured(case: Case, made: inputs.Inputs, out_dir: Path) -> str:
    """A row of the table. The numbers of layers are taken at one step, the last; by default they are in every 100."""
    ways.clear(out_dir)
    ways.ours(case, made, out_dir, module="watched_way", layer_numbers_every=case.steps)
    lines = read_metrics(out_dir)[1:]
    step = median(line["step_seconds"] for line in lines[case.warm_up :])
    ranks = [json.loads(path.read_text()) for path in out_dir.glob("costs-*.json")]
    costs = {part: max(rank.get(part, 0.0) for rank in ranks) / case.steps for part in PARTS}
    costs["layers"] *= case.steps / 100
    waited = sum(line["data_wait_seconds"] for line in lines) / case.steps
    shares = [f"{1e3 * seconds:.2f} ms, {seconds / step:.2%}" for seconds in costs.values()]
    total = f"{sum(costs.values()) / step:.2%}"
    cells = [case.model, str(case.length), case.precision, f"{1e3 * step:,.0f}", *shares, total, f"{waited / step:.3%}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    try:
        main()
    except StageFailed as error:
        sys.exit(f"a measured run failed: {error}")
