"""Measure needles in a haystack at 8 times the context: this project's evaluation beside plain lm-eval.

Both score the same model on the same samples, RULER's prompts filled to the length, with 128 tokens for the answer,
each in a fresh process: this project's evaluation stage, and `lm_eval --model hf` on the task files that the stage
leaves beside its samples, with its batch size 1 (its default) and, where asked, others. Samples are drawn beforehand.
Answers must be the same, sample by sample.

Exit status: 0; 1 if answers differ; 2 if a way fails.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.data_prep import machine, measure
from benchmarks.evaluation import inputs
from eval.config import NIAH_TASKS
from eval.tasks.niah.scoring import string_match

_WAYS = ("ours", "lm-eval")


@dataclass
class Case:
    """A way for a model on a task, and what its runs took."""

    model: str
    task: str
    way: str
    seconds: list[float] = field(default_factory=list)
    scoring: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    others_cores: list[float] = field(default_factory=list)
    score: float = 0.0


def main() -> int:
    arguments = parse()
    project = Path(__file__).parents[2]
    os.environ["HF_HUB_OFFLINE"] = "1"
    cases, differing = [], []
    for model in arguments.models:
        folder = arguments.folder / model
        shutil.rmtree(folder, ignore_errors=True)
        given = inputs.make(model, arguments, folder)
        for task in arguments.tasks:
            ways = [Case(model, task, "ours"), *(Case(model, task, f"lm-eval, batch {n}") for n in arguments.batches)]
            cases += ways
            for _ in range(arguments.repeat):
                for case in ways:
                    try:
                        answers = run(case, given, folder, project)
                    except measure.CommandFailed as error:
                        print(error, file=sys.stderr)
                        return 2
                    if case.way == "ours":
                        own = answers
                    else:
                        differing += compare(case, own, answers)
    print(page(cases, differing, arguments))
    return 1 if differing else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A first look: --models tinystories-656k --tasks niah_single_1 --samples 4",
    )
    project = Path(__file__).parents[2]
    parser.add_argument("--data", type=Path, default=project.parent / "shared/data", help="real model and texts")
    parser.add_argument("--folder", type=Path, default=project / "build/benchmarks/evaluation", help="for all files")
    parser.add_argument("--models", nargs="+", choices=inputs.MODELS, default=list(inputs.MODELS), help="default: all")
    tasks = ("niah_single_1", "niah_depth", "niah_multikey_2")
    parser.add_argument("--tasks", nargs="+", choices=NIAH_TASKS, default=list(tasks), help=f"default: {tasks}")
    parser.add_argument("--factor", type=int, default=8, help="context factor (8)")
    parser.add_argument("--samples", type=int, default=22, help="samples per task (22)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="batch sizes of lm-eval (1)")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each way; the fastest counts (2)")
    return parser.parse_args()


def run(case: Case, given: inputs.Inputs, folder: Path, project: Path) -> dict[int, str]:
    """One run of a way; the answers by sample."""
    cores = sorted(os.sched_getaffinity(0))
    out = folder / "out"
    shutil.rmtree(out / "units", ignore_errors=True)
    samples = out / "niah"
    name = f"{case.task}-{given.factor}x"
    if case.way == "ours":
        config = given.config | {"niah": given.config["niah"] | {"tasks": [case.task]}}
        settings = {"source": str(given.source), "validation": str(given.validation), "out": str(out), "config": config}
        command = [sys.executable, "-m", "benchmarks.evaluation.our_way", json.dumps(settings)]
    else:
        shutil.rmtree(folder / "theirs", ignore_errors=True)
        arguments = f"pretrained={given.source},dtype=float32,max_length={given.length}"
        command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments, "--device", "cpu"]
        command += ["--tasks", name, "--include_path", str(samples), "--batch_size", case.way.rpartition(" ")[2]]
        command += ["--output_path", str(folder / "theirs"), "--log_samples"]
    took = measure.run(command, cores=cores, environment={"PYTHONPATH": str(project)}, log=folder / "log")
    case.seconds.append(took.seconds)
    case.peak_bytes.append(took.peak_process_bytes)
    case.others_cores.append(took.others_cores)
    return read_ours(case, out, name) if case.way == "ours" else read_theirs(case, folder / "theirs", samples, name)


def read_ours(case: Case, out: Path, name: str) -> dict[int, str]:
    """Answers, and the time that the unit's scoring took."""
    task, factor = name.rsplit("-", 1)
    (unit,) = (out / "units").glob(f"{task}-*-{factor}.json")
    result = json.loads(unit.read_text())
    case.scoring.append(result["seconds"])
    case.score = result["scores"][0]["value"]
    (lines,) = out.glob(f"samples-{task}-*-{factor}.jsonl")
    return {record["index"]: record["got"] for record in map(json.loads, lines.read_text().splitlines())}


def read_theirs(case: Case, folder: Path, samples: Path, name: str) -> dict[int, str]:
    """Answers, and the time that lm-eval says its evaluation took."""
    (results,) = folder.rglob("results_*.json")
    case.scoring.append(float(json.loads(results.read_text())["total_evaluation_time_seconds"]))
    (lines,) = folder.rglob(f"samples_{name}_*.jsonl")
    answers = {one["doc_id"]: one["resps"][0][0] for one in map(json.loads, lines.read_text().splitlines())}
    right = [json.loads(line)["outputs"] for line in (samples / f"{name}.jsonl").read_text().splitlines()]
    case.score = sum(string_match(answers[index], values) for index, values in enumerate(right)) / len(right)
    return answers


def compare(case: Case, own: dict[int, str], theirs: dict[int, str]) -> list[str]:
    """The samples whose answers differ; ours may end earlier, where all is found."""
    return [
        f"{case.model} {case.task}, {case.way}, sample {index}: {own[index]!r} and {theirs[index]!r}"
        for index in own
        if not theirs[index].startswith(own[index])
    ]


def page(cases: list[Case], differing: list[str], arguments: argparse.Namespace) -> str:
    """The table, in Markdown."""
    facts = {key: value for key, value in machine.describe({}).items() if key in ("date", "CPU", "cores", "memory")}
    lines = [f"{key}: {value}" for key, value in facts.items()]
    lines += [
        "",
        f"{arguments.samples} samples per task at {arguments.factor}x, the faster of {arguments.repeat} runs:",
        "",
    ]
    lines += [
        "| model | task | way | whole command (s) | ratio | peak MiB | others' cores | score |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        own = next(other for other in cases if (other.model, other.task, other.way) == (case.model, case.task, "ours"))
        ratio = f"{min(case.seconds) / min(own.seconds):.2f}x"
        lines.append(
            f"| {case.model} | {case.task} | {case.way} | {min(case.seconds):.1f} | {ratio} | "
            f"{max(case.peak_bytes) / 2**20:.0f} | {max(case.others_cores):.2f} | {case.score:.3f} |"
        )
    lines += ["", "All runs (s): " + "; ".join(f"{c.way} {', '.join(f'{s:.1f}' for s in c.seconds)}" for c in cases)]
    return "\n".join([*lines, "", *(differing or ["All answers are the same."])])


if __name__ == "__main__":
    sys.exit(main())
