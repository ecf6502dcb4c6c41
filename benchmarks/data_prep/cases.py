"""What is measured: a way of tokenizing, a tokenizer, a corpus, a number of workers; and the command that does it."""

import shutil
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.data_prep import measure
from benchmarks.data_prep.corpus import FORMATS, Corpus
from benchmarks.data_prep.environment import PROJECT, TokenizerCase

PACKAGE = "benchmarks.data_prep"
WAYS = ("ours", "megatron", "datatrove", "library")
# Of the one large corpus and the smaller one that the slow ways take; "start" is a few documents, for start-up alone.
SIZES_OF = {
    "ours": ("large", "small", "start"),
    "megatron": ("small", "start"),
    "datatrove": ("small", "start"),
    "library": ("large",),
}
FORMATS_OF = {"ours": FORMATS, "megatron": ("jsonl",), "datatrove": FORMATS, "library": ("jsonl",)}


@dataclass(frozen=True)
class Case:
    """One thing to measure. The library alone reads JSONL before its clock starts, so its format does not matter."""

    way: str
    tokenizer: str
    format: str
    size: str
    workers: int

    @property
    def label(self) -> str:
        return "-".join((self.way, self.tokenizer, self.format, self.size, str(self.workers)))


@dataclass
class Result:
    """All runs of a case, and what it wrote; `seconds` has one entry per run, for the library its own clock's."""

    case: Case
    text_bytes: int
    tokens: int = 0
    documents: int = 0
    seconds: list[float] = field(default_factory=list)
    runs: list[measure.Run] = field(default_factory=list)
    library: str = ""  # that encoded, with its version; where this project chose it

    @property
    def best(self) -> float:
        return min(self.seconds)


def plan(tokenizers: Collection[str], ways: Collection[str], workers: Collection[int]) -> list[Case]:
    """Every case, those to be compared with each other in a row."""
    return [
        Case(way, tokenizer, file_format, size, count)
        for tokenizer in tokenizers
        for count in workers
        for file_format in FORMATS
        for way in WAYS
        for size in SIZES_OF[way]
        if way in ways and file_format in FORMATS_OF[way]
    ]


@dataclass(frozen=True)
class Runner:
    """Runs cases; `out` gets a folder per case, emptied before each run. Cores: as many as the case has workers."""

    corpora: dict[str, Corpus]
    tokenizers: dict[str, TokenizerCase]
    datatrove_python: Path | None
    cores: tuple[int, ...]
    out: Path

    def folder(self, case: Case) -> Path:
        return self.out / case.label

    def run(self, case: Case) -> measure.Run:
        """Raises: measure.CommandFailed."""
        folder = self.folder(case)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return measure.run(
            list(self.command(case)),
            cores=self.cores[: case.workers],
            environment={} if case.way == "datatrove" else {"PYTHONPATH": str(PROJECT)},
            log=self.out / f"{case.label}.log",
        )

    def command(self, case: Case) -> Iterator[str]:
        corpus, tokenizer = self.corpora[case.size], self.tokenizers[case.tokenizer]
        files = [str(path) for path in corpus.paths(case.format)]
        source = Path(corpus.folder) / case.format
        if case.way == "ours":
            yield from (sys.executable, "-m", f"{PACKAGE}.our_way", f"{source}/*.{case.format}")
            yield from ("--tokenizer", str(tokenizer.path), "--vocabulary", str(tokenizer.vocabulary))
            # A few documents may leave validation without any, which is refused.
            yield from ("--validation-fraction", "0") if case.size == "start" else ()
        elif case.way == "datatrove":
            script = str(Path(__file__).parent / "datatrove_way.py")
            # -P: the modules beside the script are not datatrove's.
            yield from (str(self.datatrove_python), "-P", script, str(source))
            yield from ("--tokenizer", str(tokenizer.json), "--eos", tokenizer.eos)
        else:
            module = {"megatron": "megatron_way", "library": "library_alone"}[case.way]
            yield from (sys.executable, "-m", f"{PACKAGE}.{module}", *files, "--tokenizer", str(tokenizer.path))
        yield from ("--out", str(self.folder(case)), "--workers", str(case.workers))
