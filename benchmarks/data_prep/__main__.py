"""Measure data preparation side by side with Megatron-LM's and datatrove's way.

Builds a corpus out of real English (corpus.py says how), runs every way on the same files with the same tokenizer,
bound to as many cores as it has workers, compares what they wrote token by token, and prints the tables for
docs/performance.md. benchmarks/README.md says what is fair about it and what is not.

Exit status: 0; 1 if any two outputs differ; 2 if something that it needs is missing or a way fails.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from itertools import islice
from pathlib import Path

from benchmarks.data_prep import environment, measure, outputs, report
from benchmarks.data_prep.cases import WAYS, Case, Result, Runner, plan
from benchmarks.data_prep.corpus import Corpus, build
from benchmarks.data_prep.machine import describe

SAMPLE_DOCUMENTS = 500
START_MEGABYTES = 0.05


def main() -> int:
    arguments = parse()
    if not (arguments.data / "text").is_dir():
        print(f"{arguments.data}: no folder text in it; give the folder of the real test data with --data")
        return 2
    cores = tuple(sorted(os.sched_getaffinity(0)))
    if max(arguments.workers) > len(cores):
        print(f"--workers {max(arguments.workers)}: this machine gives {len(cores)} cores; ask for fewer")
        return 2
    corpora = build_corpora(arguments)
    tokenizers = {
        name: environment.tokenizer_case(
            name, arguments.data, arguments.cache, islice(corpora["small"].texts(), SAMPLE_DOCUMENTS)
        )
        for name in arguments.tokenizers
    }
    python = environment.datatrove_python(arguments.cache) if "datatrove" in arguments.ways else None
    runner = Runner(corpora, tokenizers, python, cores, arguments.cache / "out")
    cases = plan(arguments.tokenizers, arguments.ways, arguments.workers)
    machine = describe(environment.datatrove_versions(python) if python else {})
    results = [Result(case, corpora[case.size].text_bytes) for case in cases]
    measure_all(runner, results, arguments.repeat)
    differing = compare_all(runner, results)
    page = report.page(results, corpora, machine, differing, arguments.repeat)
    save(arguments.cache, page, results, corpora, machine, differing)
    print(page)
    if not arguments.keep:
        shutil.rmtree(runner.out)
    return 1 if differing else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_prep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A first look (two minutes): --megabytes 8 --baseline-megabytes 2 --repeat 1 --tokenizers smollm",
    )
    project = Path(__file__).parents[2]
    parser.add_argument(
        "--megabytes", type=float, default=200, help="text for this project and the library alone, in 10^6 bytes (200)"
    )
    parser.add_argument(
        "--baseline-megabytes",
        type=float,
        default=24,
        help="text for the slow ways (24); this project runs on it too, to compare outputs and memory",
    )
    parser.add_argument("--files", type=int, default=4, help="files that the text is spread over (4)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each case, of which the fastest counts (3)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers, each a core (1 2)")
    parser.add_argument("--tokenizers", nargs="+", choices=("smollm", "llama2"), default=["smollm", "llama2"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="leave some out to save time")
    parser.add_argument("--seed", type=int, default=1, help="seed of the corpus (1)")
    parser.add_argument(
        "--data", type=Path, default=project.parent / "shared" / "data", help="real texts and tokenizers (%(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=project / "build" / "benchmarks",
        help="corpora, datatrove's environment, results.json and results.md (%(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="leave what the ways wrote, under CACHE/out")
    arguments = parser.parse_args()
    arguments.data, arguments.cache = arguments.data.resolve(), arguments.cache.resolve()
    if max(arguments.workers) > arguments.files:
        parser.error("--files: datatrove gives whole files to workers, so there must be one for each at least")
    return arguments


def build_corpora(arguments: argparse.Namespace) -> dict[str, Corpus]:
    sizes = {"large": arguments.megabytes, "small": arguments.baseline_megabytes, "start": START_MEGABYTES}
    corpora = {}
    for name, megabytes in sizes.items():
        say(f"corpus {name}: {megabytes:g} MB")
        folder = arguments.cache / "corpora" / name
        corpora[name] = build(arguments.data, folder, megabytes, files=arguments.files, seed=arguments.seed)
    return corpora


def measure_all(runner: Runner, results: list[Result], repeat: int) -> None:
    """All cases, then all once more: what else the machine does then falls on all alike."""
    for number in range(1, repeat + 1):
        for index, result in enumerate(results, 1):
            run = runner.run(result.case)
            result.runs.append(run)
            result.seconds.append(_library_seconds(runner, result) if result.case.way == "library" else run.seconds)
            say(f"run {number}/{repeat}, {index}/{len(results)} {result.case.label}: {result.seconds[-1]:.2f} s")


def _library_seconds(runner: Runner, result: Result) -> float:
    outcome = json.loads((runner.folder(result.case) / "library.json").read_text())
    # One EOS per document, which the library does not make, so that all ways count the same tokens.
    result.library, result.documents = outcome["library"], runner.corpora[result.case.size].documents
    result.tokens = outcome["tokens"] + result.documents
    return outcome["seconds"]


def compare_all(runner: Runner, results: list[Result]) -> list[str]:
    """Fill in tokens and documents; what differs between any two outputs of a tokenizer and a corpus, one line each."""
    outcome: list[str] = []
    expected: dict[tuple[str, str], tuple[Case, outputs.Output]] = {}
    for result in results:
        case = result.case
        if case.way == "library":
            continue
        output = outputs.read(runner.folder(case))
        result.tokens, result.documents = output.tokens, output.count
        result.library = outputs.libraries(runner.folder(case))
        first, reference = expected.setdefault((case.tokenizer, case.size), (case, output))
        lines = outputs.differences(reference, output, runner.tokenizers[case.tokenizer].eos_id)
        if output.count != runner.corpora[case.size].documents:
            lines.append(f"{output.count} documents of {runner.corpora[case.size].documents} in the corpus")
        outcome += [f"{case.label} (beside {first.label}): {line}" for line in lines]
    return outcome


def save(
    cache: Path,
    page: str,
    results: list[Result],
    corpora: dict[str, Corpus],
    machine: dict[str, str],
    differing: list[str],
) -> None:
    content = {
        "machine": machine,
        "corpora": {name: dataclasses.asdict(corpus) for name, corpus in corpora.items()},
        "differences": differing,
        "results": [dataclasses.asdict(result) for result in results],
    }
    (cache / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    (cache / "results.md").write_text(page + "\n", encoding="utf-8")
    say(f"{cache / 'results.json'}, {cache / 'results.md'}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except measure.CommandFailed as error:
        say(f"a measured command failed: {error}")
        sys.exit(2)
