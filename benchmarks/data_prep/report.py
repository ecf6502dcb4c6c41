"""The measurements as a page of Markdown: ratios first, then what they come from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.data_prep.cases import Case, Result
from benchmarks.data_prep.corpus import Corpus

NAMES = {
    "ours": "this project",
    "megatron": "Megatron-LM's way",
    "datatrove": "datatrove",
    "library": "library alone, in memory",
}
TARGET_TOKENS = 20e9


@dataclass(frozen=True)
class Figures:
    """Looks up what was measured; None where a case was not."""

    results: dict[Case, Result]

    def rate(self, case: Case) -> float | None:
        """Tokens per second of the whole command, start-up included; the library's by its own clock."""
        result = self.results.get(case)
        return result.tokens / result.best if result else None

    def net_rate(self, case: Case) -> float | None:
        """Tokens per second without start-up, which would weigh more on the smaller corpus than on a real one.

        None where start-up takes half of the time or more: the corpus is too small to tell.
        """
        result = self.results.get(case)
        start = self.results.get(Case(case.way, case.tokenizer, case.format, "start", case.workers))
        if result is None or start is None or start.best > result.best / 2:
            return None
        return result.tokens / (result.best - start.best)

    def cases(self, way: str, size: str) -> list[Case]:
        return [case for case in self.results if (case.way, case.size) == (way, size)]


def page(
    results: list[Result], corpora: dict[str, Corpus], machine: dict[str, str], differing: list[str], repeat: int
) -> str:
    figures = Figures({result.case: result for result in results})
    parts = [
        "## Ratios",
        ratios(figures),
        scaling(figures),
        "## The same tokens",
        same(results, differing),
        "## Speed",
        f"Wall time of the whole command, best of {repeat}; net: start-up (measured on a few documents) taken off.",
        speeds(figures, results, corpora),
        "## Memory",
        memory(figures, corpora),
        "## 20B tokens",
        estimate(figures),
        "## Machine and texts",
        *(f"- {name}: {value}" for name, value in machine.items()),
        *corpus_lines(results, corpora),
        f"- other processes kept {max(max(run.others_cores for run in result.runs) for result in results):.2f} cores "
        f"busy at worst, {_others(results):.2f} on average",
    ]
    return "\n\n".join(filter(None, parts)).replace("\n\n- ", "\n- ")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) if len(lines) > 2 else ""


def ratios(figures: Figures) -> str:
    """This project (start-up included) to the two others (start-up taken off) and to the library alone."""
    rows = []
    for case in figures.cases("ours", "large"):
        ours = figures.rate(case)
        megatron = figures.net_rate(Case("megatron", case.tokenizer, "jsonl", "small", case.workers))
        datatrove = figures.net_rate(Case("datatrove", case.tokenizer, case.format, "small", case.workers))
        alone = figures.rate(Case("library", case.tokenizer, "jsonl", "large", case.workers))
        faster = max(filter(None, (megatron, datatrove)), default=None)
        rows.append(
            [
                case.tokenizer,
                case.format,
                str(case.workers),
                _ratio(ours, faster),
                _ratio(ours, megatron),
                _ratio(ours, datatrove),
                _percent(ours, alone),
                _percent(figures.net_rate(case), alone),
            ]
        )
    head = ("tokenizer", "input", "cores", "to the faster of the two", "to Megatron-LM's way", "to datatrove")
    return table((*head, "of the library alone", "the same without start-up"), rows)


def scaling(figures: Figures) -> str:
    """Speed with the most workers to the speed with the fewest."""
    rows = []
    for way, size in (("ours", "large"), ("library", "large"), ("megatron", "small"), ("datatrove", "small")):
        cases = figures.cases(way, size)
        for tokenizer, file_format in dict.fromkeys((case.tokenizer, case.format) for case in cases):
            same = [case for case in cases if (case.tokenizer, case.format) == (tokenizer, file_format)]
            least, most = min(same, key=lambda case: case.workers), max(same, key=lambda case: case.workers)
            if least.workers == most.workers:
                continue
            rate = figures.rate if size == "large" else figures.net_rate
            ratio = _ratio(rate(most), rate(least), digits=2)
            shown = "memory" if way == "library" else file_format
            rows.append([NAMES[way], tokenizer, shown, f"{least.workers} → {most.workers}", ratio])
    return table(("scaling of", "tokenizer", "input", "cores", "speed"), rows)


def same(results: list[Result], differing: list[str]) -> str:
    if differing:
        return "\n".join(["Outputs DIFFER:", "", *(f"- {line}" for line in differing)])
    written = [result for result in results if result.case.way != "library"]
    return (
        f"All {len(written)} outputs were read back and compared token by token: equal for each tokenizer and corpus, "
        f"every document ended by one EOS, none missing ({sum(result.documents for result in written):,} documents, "
        f"{sum(result.tokens for result in written) / 1e6:.1f}M tokens in all)."
    )


def speeds(figures: Figures, results: list[Result], corpora: dict[str, Corpus]) -> str:
    rows: list[list[str]] = []
    for result in results:
        case = result.case
        if case.size == "start":
            continue
        rate, net = figures.rate(case), figures.net_rate(case)
        rows.append(
            [
                case.tokenizer,
                "memory" if case.way == "library" else case.format,
                str(case.workers),
                NAMES[case.way] + (f" ({result.library})" if result.library else ""),
                f"{corpora[case.size].text_bytes / 1e6:.0f}",
                f"{result.best:.2f}",
                "" if case.way == "library" else f"{min(run.cpu_seconds for run in result.runs):.1f}",
                _millions(rate),
                _millions(net),
                _millions(rate / case.workers if rate else None),
            ]
        )
    head = ("tokenizer", "input", "cores", "way", "MB", "s", "CPU s", "Mtokens/s", "net", "per core")
    return table(head, sorted(rows, key=lambda row: row[:3]))


def memory(figures: Figures, corpora: dict[str, Corpus]) -> str:
    """Peak resident memory: of the largest process, and the sum over all (shared pages counted in each)."""
    rows = []
    for case, result in figures.results.items():
        if case.size == "start" or case.way == "library":
            continue
        file_bytes = corpora[case.size].text_bytes / corpora[case.size].files
        rows.append(
            [
                case.tokenizer,
                case.format,
                str(case.workers),
                NAMES[case.way],
                f"{file_bytes / 1e6:.1f}",
                _mebibytes(max(run.peak_process_bytes for run in result.runs)),
                _mebibytes(max(run.peak_sum_bytes for run in result.runs)),
                str(max(run.processes for run in result.runs)),
            ]
        )
    head = (
        "tokenizer",
        "input",
        "workers",
        "way",
        "MB of text per file",
        "largest process, MiB",
        "sum, MiB",
        "processes",
    )
    return table(head, sorted(rows, key=lambda row: row[:4]))


def estimate(figures: Figures) -> str:
    """Core-hours for TARGET_TOKENS at the speed per core with the most workers."""
    rows = []
    for way, size in (("ours", "large"), ("megatron", "small"), ("datatrove", "small")):
        cases = figures.cases(way, size)
        most = max((case.workers for case in cases), default=0)
        for case in cases:
            rate = figures.rate(case) if way == "ours" else figures.net_rate(case)
            if case.workers == most and rate:
                hours = TARGET_TOKENS / (rate / case.workers) / 3600
                rows.append([case.tokenizer, case.format, NAMES[way], f"{hours:.1f}"])
    return table(("tokenizer", "input", "way", "core-hours"), sorted(rows, key=lambda row: row[:2]))


def corpus_lines(results: list[Result], corpora: dict[str, Corpus]) -> Iterable[str]:
    for name, corpus in corpora.items():
        tokens = {result.case.tokenizer: result.tokens for result in results if result.case.size == name}
        per_token = ", ".join(
            f"{corpus.text_bytes / count:.2f} bytes per token ({tokenizer})" for tokenizer, count in tokens.items()
        )
        yield (
            f"- corpus {name}: {corpus.text_bytes / 1e6:.2f} MB of text, {corpus.documents:,} documents in "
            f"{corpus.files} files, {corpus.unseen_share:.1%} of the words unseen; {per_token}"
        )


def _others(results: list[Result]) -> float:
    runs = [run for result in results for run in result.runs]
    return sum(run.others_cores * run.seconds for run in runs) / sum(run.seconds for run in runs)


def _ratio(value: float | None, other: float | None, digits: int = 1) -> str:
    return f"{value / other:.{digits}f}x" if value and other else "—"


def _percent(value: float | None, other: float | None) -> str:
    return f"{value / other:.0%}" if value and other else "—"


def _millions(value: float | None) -> str:
    return f"{value / 1e6:.2f}" if value else "—"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:.0f}"
