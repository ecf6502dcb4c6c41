"""Measure training on one GPU: this project's ways in bf16 and FP8 beside the published code's way, in one go.

Random weights of the published shapes at their row lengths, random tokens; every run in a process of its own. A model
whose optimizer does not fit is measured with fewer layers, which the table says. Prints tokens/s, MFU and memory of
every run, ratios to the published way, and where the time of a step goes.

Exit status: 0; 1 if a way failed; 2 without a GPU (but for --models tiny).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_train import report
from benchmarks.gpu_train.cases import MODELS, WAYS, Case, fitting
from model_surgery.megatron.te.availability import is_installed
from model_surgery.megatron.te.settings import FILLED_HEAD_DIM
from pipeline.launch.devices import device_memory
from pipeline.recalibration.mfu import peak_flops

_MICRO = {"360m": 16, "1.7b": 8, "7b": 2, "tiny": 2}


def main() -> int:
    arguments = parse()
    if not torch.cuda.is_available() and arguments.models != ["tiny"]:
        say("there is no GPU here; --models tiny shows that the benchmark runs")
        return 2
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    runs = []
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        for way in arguments.ways or possible(MODELS[model][0].head_dim):
            runs.append(run(case_of(model, way, arguments), arguments.most_seconds))
            arguments.out.write_text(json.dumps({"device": device, "runs": runs}, indent=1))
        print(report.page(runs, device, peak_flops(device)), flush=True)  # again with every model: time may run out
    return int(any("failed" in outcome for outcome in runs))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A first look: --models 360m --ways published torch-bf16 --steps 6",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["360m", "1.7b", "7b"], help="(360m 1.7b 7b)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: all that can be had here")
    parser.add_argument("--micro-batch", type=int, help="rows of a forward pass (360m: 16, 1.7b: 8, 7b: 2)")
    parser.add_argument("--accumulate", type=int, default=4, help="micro batches of an update (4)")
    parser.add_argument("--steps", type=int, default=10, help="updates, the first --warm-up of them not timed (10)")
    parser.add_argument("--warm-up", type=int, default=3, help="(3)")
    parser.add_argument("--most-seconds", type=int, default=240, help="a run that takes longer has failed (240)")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/gpu_train.json"), help="(%(default)s)")
    return parser.parse_args()


def possible(head_dim: int) -> list[str]:
    """The ways that a model with such heads can be trained in, with what is installed."""
    narrow = head_dim < FILLED_HEAD_DIM
    without = {"te-fp8-attention", "te-fp8-both"} if narrow else {"te-fp8-attention-padded"}
    return [way for way in WAYS if way not in without and (is_installed() or not way.startswith("te-"))]


def case_of(model: str, way: str, arguments: argparse.Namespace) -> Case:
    micro_batch = arguments.micro_batch or _MICRO[model]
    shape = fitting(model, micro_batch, arguments.accumulate, device_memory())
    sizes = {"length": MODELS[model][1], "micro_batch": micro_batch, "accumulate": arguments.accumulate}
    steps = {"steps": arguments.steps, "warm_up": arguments.warm_up}
    return Case(model=model, way=way, shape=shape.model_dump(), **sizes, **steps)


def run(case: Case, most_seconds: int) -> dict[str, Any]:
    """What a fresh process measures of a case, or the last line of what it failed with."""
    module = "published" if case.way == "published" else "ours"
    command = [sys.executable, "-m", f"benchmarks.gpu_train.{module}", json.dumps(case.as_dict())]
    known = {"case": case.as_dict()}
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=most_seconds)
    except subprocess.TimeoutExpired:
        say(f"{case.model} {case.way}: FAILED: not done after {most_seconds} s")
        return known | {"failed": f"not done after {most_seconds} s"}
    if result.returncode != 0:
        failed = (result.stderr.strip().splitlines() or ["no message"])[-1][:200]
        say(f"{case.model} {case.way}: FAILED: {failed}")
        return known | {"failed": failed, "stderr": result.stderr[-4000:]}
    outcome = known | json.loads(result.stdout.strip().splitlines()[-1])
    say(f"{case.model} {case.way}: {report.facts_of(outcome, None)['tokens_per_second']:,.0f} tokens/s")
    return outcome


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
