"""The scores as tables: rows are variants, columns lengths or tasks; the same numbers go to CSV in full precision."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from eval.config import Variant
from eval.results import Results, Score
from eval.variants.rope_scaling import canonical
from pipeline.report.measures import LONGBENCH, LOWER_IS_BETTER, NEEDLES, measure, ruler_tasks
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
class Group:
    """Rows under a heading; without one where a table has a single group."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """columns: heading and what stands below it, such as ('4x', '2,048 tokens')."""

    title: str
    columns: tuple[tuple[str, str], ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    csv: str


def tabulate(results: Results) -> Iterator[tuple[str, Table]]:
    """Name and table of everything that was evaluated."""
    tables = {
        "recall_by_length": length_table(results, "recall", "Recall against context length"),
        "needles_by_length": length_table(results, NEEDLES, "Needles against context length"),
        "needles_by_task": needle_table(results),
        "longbench": longbench_table(results),
        "loss_by_length": length_table(results, "loss", "Loss against context length"),
        "tasks": task_table(results),
    }
    yield from ((name, table) for name, table in tables.items() if table is not None)


_MEANING = {
    "loss": "Nats per token, lower",
    "recall": "Share of facts recalled, higher",
    NEEDLES: "Share of needles found, higher",
}


def length_table(results: Results, task: str, title: str) -> Table | None:
    """Loss, recall or needles of every variant at every length; None where that was not evaluated."""
    scored = measure(results, task)
    scores = list(scored.scores.values())
    if not scores:
        return None
    lower = task in LOWER_IS_BETTER
    notes = [
        f"{_MEANING[task]} is better; ± is one standard error over "
        f"{samples_text(scores, 'rows' if lower else 'samples')}.",
        "Bold is the lowest of its column." if lower else "Bold is the highest of its column.",
    ]
    if task == NEEDLES:
        notes.insert(0, f"Mean over RULER's tasks: {', '.join(scored.tasks)}.")
    if task in results.chance:
        notes.append(f"Guessing would score {results.chance[task]:.3f}.")
    columns = length_columns(scored.factors, results.training_length)
    return build(title, scores, columns, lambda score: score.context_factor, lower=lower, notes=notes)


def length_columns(factors: Sequence[int], training_length: int) -> dict[object, tuple[str, str]]:
    """A column for every length: the factor, and the tokens below it."""
    return {factor: (f"{factor}x", f"{factor * training_length:,} tokens") for factor in factors}


def needle_table(results: Results) -> Table | None:
    """Every needle task, a group of rows for every length; None where there are none."""
    tasks = results.config.niah.tasks if results.config.niah else ()
    scores = [score for score in results.scores if score.task in tasks]
    if not scores:
        return None
    columns: dict[object, tuple[str, str]] = {name: heading(name) for name in tasks}
    notes = [f"Share of needles found; ± is one standard error over {samples_text(scores, 'samples')} of a task."]
    notes.append("Bold is the highest of its column at that length.")
    if apart := [name for name in tasks if name not in ruler_tasks(results.config)]:
        notes.append(f"Not part of RULER's mean: {', '.join(apart)}.")

    def group(score: Score) -> str:
        return f"{score.context_factor}x, {score.context_factor * results.training_length:,} tokens"

    ordered = sorted(scores, key=lambda score: score.context_factor)
    table = "Needles by task"
    return build(table, ordered, columns, lambda score: score.task, lower=False, notes=notes, group_of=group)


def heading(task: str) -> tuple[str, str]:
    """A task's name in two short lines: 'niah_multikey_2' is 'multikey 2' under 'niah'."""
    if task == "lost_in_the_middle":
        return "lost in", "the middle"
    first, _, rest = task.partition("_")
    return rest.replace("_", " "), first


def longbench_table(results: Results) -> Table | None:
    """LongBench's tasks in percent, and their mean first; None where there are none."""
    scored = measure(results, LONGBENCH)
    if not scored.scores:
        return None
    scores = [*scored.scores.values(), *(score for score in results.scores if score.task in scored.tasks)]
    metrics = {score.task: f"{score.metric}, {score.samples:,} items" for score in scores}
    columns: dict[object, tuple[str, str]] = {LONGBENCH: ("Average", f"{len(scored.tasks)} tasks")}
    columns |= {name: (name, metrics[name]) for name in scored.tasks}
    factor = scored.factors[-1]
    notes = [
        "Percent, higher is better; ± is one standard error over items.",
        "Average as in the paper: the mean of the tasks.",
        f"Prompts of more than {factor * results.training_length:,} tokens ({factor}x) lose their middle. "
        "Bold is the highest of its column.",
    ]
    return build("LongBench", scores, columns, lambda score: score.task, lower=False, notes=notes, scale=100, digits=1)


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
    columns: dict[object, tuple[str, str]] = {
        (s.task, s.metric): (s.task, f"{s.metric}, {s.samples:,} items") for s in scores
    }
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
    group_of: Callable[[Score], str] = lambda score: "",
    scale: int = 1,
    digits: int = 3,
) -> Table:
    """Puts every score in its group, row and column and marks the best of each column in its group."""
    cells = {(group_of(score), score.variant, column_of(score)): score for score in scores}
    best: dict[object, float] = {}
    for (group, _, column), score in cells.items():
        best[group, column] = (min if lower else max)(best.get((group, column), score.value), score.value)
    variants = in_order(tuple({score.variant for score in scores}))
    groups, ordered = [], []
    for group in dict.fromkeys(group for group, _, _ in cells):
        rows = []
        for variant in variants:
            of_row = {column: cells.get((group, variant, column)) for column in columns}
            ordered += [score for score in of_row.values() if score is not None]
            shown = (show(score, best.get((group, column)), scale, digits) for column, score in of_row.items())
            rows.append(Row(variant, LOOKS[variant].label, LOOKS[variant].color, tuple(shown)))
        groups.append(Group(group, tuple(rows)))
    return Table(title, tuple(columns.values()), tuple(groups), tuple(notes), scores_csv(ordered))


def show(score: Score | None, best: float | None, scale: int, digits: int) -> Cell | None:
    """A score times `scale`, rounded."""
    if score is None:
        return None
    stderr = "" if score.stderr is None else f"{scale * score.stderr:.{digits}f}"
    return Cell(value=f"{scale * score.value:.{digits}f}", stderr=stderr, best=score.value == best)


def samples_text(scores: list[Score], unit: str) -> str:
    """'200 samples', or '16 to 128 rows' where lengths have different numbers."""
    counts = sorted({score.samples for score in scores})
    return f"{counts[0]:,} {unit}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} {unit}"


def scores_csv(scores: Iterable[Score]) -> str:
    """One line a score, in the fields of results.json."""
    return to_csv(list(Score.model_fields), [list(score.model_dump().values()) for score in scores])


def to_csv(fields: list[str], lines: Sequence[Sequence[object]]) -> str:
    """Lines under a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows(lines)
    return text.getvalue()
