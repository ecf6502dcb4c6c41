"""The scores as tables: rows are variants, columns lengths or tasks; the same numbers go to CSV in full precision."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from eval.config import Variant
from eval.results import Results, Score
from eval.variants import canonical
from pipeline.report.claims import Claim, claims
from pipeline.report.variants import LOOKS, in_order


@dataclass(frozen=True)
class Cell:
    """A score as shown: value, standard error (empty where there is none), and whether it is its column's best."""

    value: str
    stderr: str
    best: bool


@dataclass(frozen=True)
class Row:
    """One variant; a cell is None where it was not scored."""

    variant: Variant
    label: str
    color: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """columns: heading and what stands below it, such as ('4x', '2,048 tokens')."""

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    csv: str


def length_table(results: Results, task: str, title: str) -> Table | None:
    """Loss or recall of every variant at every length; None where the task was not evaluated."""
    scores = [score for score in results.scores if score.task == task]
    if not scores:
        return None
    columns = {
        factor: (f"{factor}x", f"{factor * results.training_length:,} tokens") for factor in results.config.lengths
    }
    lower = task == "loss"
    notes = [
        f"{'Nats per token, lower' if lower else 'Share of facts recalled, higher'} is better; ± is one standard error "
        f"over {samples_text(scores, 'rows' if lower else 'samples')}.",
        "Bold is the lowest of its column." if lower else "Bold is the highest of its column.",
    ]
    if task in results.chance:
        notes.append(f"Guessing would score {results.chance[task]:.3f}.")
    return build(title, scores, columns, lambda score: score.context_factor, lower=lower, notes=notes)


def task_table(results: Results) -> Table | None:
    """The harness tasks at the training length; None where there are none.

    A variant that is another one at 1x (PI, NTK and YaRN are RoPE there) is not repeated.
    """
    variants, c = results.config.variants, results.config.softmax_scale_c
    same = {v for v in variants if canonical(v, 1, c) != v and canonical(v, 1, c) in variants}
    names = {task.name for task in results.config.harness}
    scores = [score for score in results.scores if score.task in names and score.variant not in same]
    if not scores:
        return None
    columns = {(s.task, s.metric): (s.task, f"{s.metric}, {s.samples:,} items") for s in scores}
    notes = ["Accuracy, higher is better; ± is one standard error over items. Bold is the highest of its column."]
    if same:
        notes.append(
            f"At the training length {', '.join(LOOKS[v].label for v in in_order(tuple(same)))} change nothing."
        )
    return build("Harness tasks", scores, columns, lambda score: (score.task, score.metric), lower=False, notes=notes)


def build(
    title: str,
    scores: list[Score],
    columns: dict[object, tuple[str, str]],
    column_of: Callable[[Score], object],
    *,
    lower: bool,
    notes: list[str],
) -> Table:
    """Puts every score in its row and column and marks the best of each column."""
    cells = {(score.variant, column_of(score)): score for score in scores}
    best: dict[object, float] = {}
    for score in scores:
        column = column_of(score)
        best[column] = (min if lower else max)(best.get(column, score.value), score.value)
    rows = tuple(
        Row(
            variant,
            LOOKS[variant].label,
            LOOKS[variant].color,
            tuple(show(cells.get((variant, column)), best.get(column)) for column in columns),
        )
        for variant in in_order(tuple({score.variant for score in scores}))
    )
    ordered = (cells[row.variant, column] for row in rows for column in columns if (row.variant, column) in cells)
    return Table(title, tuple(columns.values()), rows, tuple(notes), scores_csv(ordered))


def show(score: Score | None, best: float | None) -> Cell | None:
    """A score with three decimals."""
    if score is None:
        return None
    stderr = "" if score.stderr is None else f"{score.stderr:.3f}"
    return Cell(value=f"{score.value:.3f}", stderr=stderr, best=score.value == best)


def samples_text(scores: list[Score], unit: str) -> str:
    """'200 samples', or '16 to 128 rows' where lengths have different numbers."""
    counts = sorted({score.samples for score in scores})
    return f"{counts[0]:,} {unit}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} {unit}"


def scores_csv(scores: Iterable[Score]) -> str:
    """One line a score, in the fields of results.json."""
    return to_csv(list(Score.model_fields), [list(score.model_dump().values()) for score in scores])


@dataclass(frozen=True)
class Against:
    """A rival's name and number, and what the difference is worth."""

    rival: str
    value: str
    verdict: str
    difference: str


@dataclass(frozen=True)
class Comparison:
    """DroPE on a task at a length against the best RoPE variant and the control; None where there is no such rival."""

    task: str
    length: str
    ours: str
    rope: Against | None
    control: Against | None


def comparisons(results: Results) -> tuple[list[Comparison], str]:
    """Every claim on recall, then on loss, by length; the same as CSV, one line a claim."""
    found = [*claims(results, "recall"), *claims(results, "loss")]
    places: dict[tuple[str, int], list[Claim]] = {}
    for claim in found:
        places.setdefault((claim.ours.task, claim.ours.context_factor), []).append(claim)
    return [compared(here) for here in places.values()], claims_csv(found)


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
        task=ours.ours.task,
        length=f"{ours.ours.context_factor}x",
        ours=ours.number(ours.ours.value),
        rope=sides.get(False),
        control=sides.get(True),
    )


def claims_csv(found: list[Claim]) -> str:
    """One line a claim, in full precision."""
    fields = ["task", "context_factor", "variant", "value", "rival", "rival_value", "difference", "stderr", "verdict"]
    lines: list[list[object]] = []
    for claim in found:
        ours, rival = claim.ours, claim.rival
        place = [ours.task, ours.context_factor, ours.variant, ours.value]
        lines.append([*place, rival.variant, rival.value, claim.difference, claim.stderr, claim.verdict])
    return to_csv(fields, lines)


def to_csv(fields: list[str], lines: list[list[object]]) -> str:
    """Lines under a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows(lines)
    return text.getvalue()
