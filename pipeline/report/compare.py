"""Several runs on one page: the DroPE of each side by side, and its difference to the first run's."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.claims import Claim, compare
from pipeline.report.measures import LONGBENCH, NEEDLES, Measure
from pipeline.report.runs import Run
from pipeline.report.samples import same_samples


@dataclass(frozen=True)
class Cell:
    """A run's score; the difference to the first run's in words, and how it was found: empty for the first run."""

    value: str
    stderr: str
    verdict: str
    difference: str
    how: str


@dataclass(frozen=True)
class Line:
    """A measure at a length; a cell is None where the run has no such score."""

    length: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Section:
    """All lengths of one measure."""

    heading: str
    lines: tuple[Line, ...]


_HEADINGS = {
    "recall": "Recall (share of facts)",
    "loss": "Loss (nats per token)",
    NEEDLES: "Needles (share found, mean of RULER's tasks)",
    LONGBENCH: "LongBench (percent, mean of the tasks)",
}


def sections(runs: Sequence[Run]) -> list[Section]:
    """Everything that was scored in any run, by measure and length."""
    scored = []
    for name, metric in names_of(runs):
        measures = [run.measure(name, metric) for run in runs]
        factors = sorted(
            {score.context_factor for run, m in zip(runs, measures, strict=True) for score in m.of(run.variant)}
        )
        if factors:
            heading = _HEADINGS.get(name) or (f"{name} ({metric})" if metric else name)
            lines = (Line(f"{factor}x", cells_of(runs, measures, factor)) for factor in factors)
            scored.append(Section(heading, tuple(lines)))
    return scored


def names_of(runs: Sequence[Run]) -> list[tuple[str, str | None]]:
    """Measures in the order of the page: recall, needles, LongBench, each with its tasks; loss; all others."""
    every = dict.fromkeys((score.task, score.metric) for run in runs for score in run.results.scores)
    needles = [place for place in every if place[1] == "string_match"]
    longbench = [place for place in every if any(place[0] in run.measure(LONGBENCH).tasks for run in runs)]
    first = [("recall", None), (NEEDLES, None), *needles, (LONGBENCH, None), *longbench, ("loss", None)]
    known = {name for name, _ in first}
    return [*first, *(place for place in every if place[0] not in known)]


def cells_of(runs: Sequence[Run], measures: Sequence[Measure], factor: int) -> tuple[Cell | None, ...]:
    """The runs' scores at one length, each but the first with its difference to the first."""
    return tuple(
        cell(runs[0], run, measures[0], scored, factor) if place else alone(run, scored, factor)
        for place, (run, scored) in enumerate(zip(runs, measures, strict=True))
    )


def alone(run: Run, scored: Measure, factor: int, why: str = "") -> Cell | None:
    """A score without a difference, or with what forbids one."""
    score = scored.scores.get((run.variant, factor))
    if score is None:
        return None
    shown = Claim(score, score, 0.0, score.stderr)
    return Cell(shown.number(score.value), "" if score.stderr is None else shown.number(score.stderr), why, "", "")


def cell(first: Run, run: Run, of_first: Measure, of_run: Measure, factor: int) -> Cell | None:
    """A score with its difference to the first run's, in pairs where both were scored on the same samples."""
    ours, rival = of_run.scores.get((run.variant, factor)), of_first.scores.get((first.variant, factor))
    if ours is None or rival is None:
        return alone(run, of_run, factor)
    if of_run.tasks != of_first.tasks:
        return alone(run, of_run, factor, "of other tasks")
    if of_run.name == "loss" and run.results.tokenizer_digest != first.results.tokenizer_digest:
        return alone(run, of_run, factor, "of other tokens")
    our_parts, first_parts = of_run.parts[run.variant, factor], of_first.parts[first.variant, factor]
    paired = (
        bool(our_parts)
        and [*map(len, our_parts)] == [*map(len, first_parts)]
        and all(same_samples(run, first, task) for task in of_run.tasks)
    )
    claim = compare(ours, rival, list(zip(our_parts, first_parts, strict=True)) if paired else ())
    return Cell(
        value=claim.number(ours.value),
        stderr="" if ours.stderr is None else claim.number(ours.stderr),
        verdict=claim.verdict,
        difference=f"{'+' if claim.difference >= 0 else '−'}{claim.difference_text}",
        how="" if paired else "unpaired",
    )
