"""DroPE against its rivals as a table: what claims.py allows to be said, for reading and as CSV."""

from dataclasses import dataclass

from eval.results import Results
from pipeline.report.claims import Claim, Claims
from pipeline.report.measures import LONGBENCH, NEEDLES, measure
from pipeline.report.tables import to_csv
from pipeline.report.variants import LOOKS


@dataclass(frozen=True)
class Against:
    """A rival's name and number, and what the difference is worth."""

    rival: str
    value: str
    verdict: str
    difference: str


@dataclass(frozen=True)
class Comparison:
    """DroPE at a length against the best RoPE variant and the control; None where there is no such rival."""

    length: str
    ours: str
    rope: Against | None
    control: Against | None


@dataclass(frozen=True)
class Comparisons:
    """All lengths of one measure."""

    heading: str
    rows: tuple[Comparison, ...]


def comparisons(results: Results, by_task: Claims) -> tuple[list[Comparisons], str]:
    """Every claim by measure and length; the same as CSV, one line a claim."""
    shown = []
    for name, claimed in by_task.items():
        places: dict[int, list[Claim]] = {}
        for claim in claimed:
            places.setdefault(claim.ours.context_factor, []).append(claim)
        if places:
            shown.append(Comparisons(heading_of(results, name), tuple(compared(here) for here in places.values())))
    return shown, claims_csv([claim for claimed in by_task.values() for claim in claimed])


def heading_of(results: Results, name: str) -> str:
    """A measure with its unit."""
    tasks = len(measure(results, name).tasks)
    return {
        "recall": "Recall (share of facts)",
        NEEDLES: f"Needles (share found, mean of {tasks} RULER {'task' if tasks == 1 else 'tasks'})",
        LONGBENCH: f"LongBench (percent, mean of {tasks} {'task' if tasks == 1 else 'tasks'})",
        "loss": "Loss (nats per token)",
    }[name]


def compared(here: list[Claim]) -> Comparison:
    """The claims of one place, rounded for reading; a difference is positive where DroPE is better."""
    sides: dict[bool, Against] = {}
    for claim in here:
        sides[claim.rival.variant == "control"] = Against(
            rival=LOOKS[claim.rival.variant].label,
            value=claim.number(claim.rival.value),
            verdict=claim.verdict,
            difference=f"{'+' if claim.difference >= 0 else '−'}{claim.difference_text}",
        )
    ours = max(here, key=lambda claim: claim.digits)
    return Comparison(
        length=f"{ours.ours.context_factor}x",
        ours=ours.number(ours.ours.value),
        rope=sides.get(False),
        control=sides.get(True),
    )


def claims_csv(claimed: list[Claim]) -> str:
    """One line a claim, in full precision."""
    fields = ["task", "context_factor", "variant", "value", "rival", "rival_value", "difference", "stderr"]
    fields += ["low", "high", "verdict"]
    lines: list[list[object]] = []
    for claim in claimed:
        ours, rival = claim.ours, claim.rival
        place = [ours.task, ours.context_factor, ours.variant, ours.value]
        lines.append([*place, rival.variant, rival.value, claim.difference, claim.stderr])
        lines[-1] += [*(claim.interval or ("", "")), claim.verdict]
    return to_csv(fields, lines)
