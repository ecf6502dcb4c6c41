"""Break the code in random small ways, one at a time, and count which mistakes the tests notice.

Works on copies of the project. Tests run once to note which of them run which line; then, for each mistake, those that
run its line (where none is known to, those in the folder that mirrors the file's) run until one fails. A mistake that
makes a test hang counts as noticed. Some that are left are no mistakes: other code that does the same.

Exit status: 0; 1 if the tests fail without any mistake.
"""

import argparse
import collections
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from benchmarks.mutation.coverage_map import CoverageMap, record
from benchmarks.mutation.mutants import Mutant, mutants_of

PROJECT = Path(__file__).parents[2]
PACKAGES = ("data_prep", "model_surgery", "eval", "slurm", "pipeline", "foundation")
_MOST_TESTS = 20
"""Tests that run for one mistake: a line that hundreds of tests run is noticed by the first ones or not at all."""
_LEFT_OUT = shutil.ignore_patterns(".venv", ".git", "build")
_NO_TESTS = 5
"""pytest's exit status where it has run none."""


def main() -> int:
    arguments = parse()
    files = [path for package in arguments.packages for path in sorted((PROJECT / package).rglob("*.py"))]
    mutants = [mutant for path in files for mutant in mutants_of(path)]
    drawn = random.Random(arguments.seed).sample(mutants, min(arguments.count, len(mutants)))
    print(f"{len(mutants):,} possible mistakes in {len(files)} files; {len(drawn)} are made")
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(arguments.jobs):
            copies.put(copy_project(Path(folder) / str(number)))
        data = arguments.coverage or Path(folder) / "coverage"
        if not data.is_file():
            try:
                record(copies.queue[0], PACKAGES, arguments.tests, data)
            except subprocess.CalledProcessError:
                print("the tests fail as they are; nothing was broken", file=sys.stderr)
                return 1
        coverage = CoverageMap(data)
        results: dict[Mutant, bool] = {}
        with ThreadPoolExecutor(arguments.jobs) as pool:
            started = {pool.submit(try_one, mutant, copies, coverage, arguments): mutant for mutant in drawn}
            for future in tqdm(as_completed(started), total=len(drawn), unit="mistake", disable=None):
                mutant = started[future]
                results[mutant] = future.result()
                tqdm.write(f"{len(results):3} {'noticed' if results[mutant] else 'NOT NOTICED'}: {shown(mutant)}")
    print(table(results))
    return 0


def copy_project(copy: Path) -> Path:
    shutil.copytree(PROJECT, copy, symlinks=True, ignore=_LEFT_OUT)
    (copy / ".venv").symlink_to(PROJECT / ".venv")
    return copy


def try_one(mutant: Mutant, copies: "queue.Queue[Path]", coverage: CoverageMap, arguments: argparse.Namespace) -> bool:
    """is_noticed in a copy that no other thread uses."""
    copy = copies.get()
    try:
        return is_noticed(mutant, copy, coverage, arguments)
    finally:
        copies.put(copy)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("packages", nargs="*", default=PACKAGES, help="packages or folders to break; default: all")
    parser.add_argument("--count", type=int, default=100, help="mistakes to make (100)")
    parser.add_argument("--jobs", type=int, default=1, help="mistakes tried at once, each in a copy of its own (1)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (0)")
    parser.add_argument(
        "--tests", default="not slow and not long", help="pytest's mark expression of the tests that run"
    )
    parser.add_argument("--timeout", type=int, default=300, help="seconds after which tests count as hanging (300)")
    parser.add_argument("--coverage", type=Path, help="file in which the tests' lines are kept for the next call")
    return parser.parse_args()


def is_noticed(mutant: Mutant, copy: Path, coverage: CoverageMap, arguments: argparse.Namespace) -> bool:
    """Whether a test fails, or hangs, with the mistake in the copy; the copy is mended again."""
    relative = mutant.path.relative_to(PROJECT)
    tests = coverage.tests_of(relative, mutant.line)[:_MOST_TESTS] or _tests_of_folder(relative)
    file = copy / relative
    source = file.read_text(encoding="utf-8")
    file.write_text(mutant.applied(source), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", arguments.tests, *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, timeout=arguments.timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(source, encoding="utf-8")
    return done.returncode not in (0, _NO_TESTS)


def _tests_of_folder(source: Path) -> list[str]:
    """Files in the folder of tests that mirrors a source file's, or in the nearest one above it that has some."""
    folder = source.parent
    while not (files := sorted((PROJECT / "tests" / folder).glob("test_*.py"))):
        folder = folder.parent
    return [str(file.relative_to(PROJECT)) for file in files]


def shown(mutant: Mutant) -> str:
    return str(mutant).replace(f"{PROJECT}/", "")


def table(results: dict[Mutant, bool]) -> str:
    """Shares by kind of mistake, then every mistake that nothing noticed."""
    made = collections.Counter(mutant.kind for mutant in results)
    noticed = collections.Counter(mutant.kind for mutant, seen in results.items() if seen)
    rows = [f"| {kind} | {noticed[kind]} of {count} |" for kind, count in sorted(made.items())]
    total = f"| **all** | **{sum(noticed.values())} of {len(results)}** |"
    unnoticed = sorted(shown(mutant) for mutant, seen in results.items() if not seen)
    return "\n".join(["| mistake | noticed |", "|---|---|", *rows, total, "", "Not noticed:", *unnoticed])


if __name__ == "__main__":
    sys.exit(main())
