"""Numbers that others have published, beside those of the run: a difference, and no claim."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from eval.config import Variant, nearest
from eval.results import Results
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe
from pipeline.report.measures import measure
from pipeline.report.tables import to_csv
from pipeline.report.variants import LOOKS

COLUMNS = ("model", "source", "variant", "task", "context_factor", "value")
_ALL_COLUMNS = (*COLUMNS, "metric")
_UNBOUNDED = ("loss",)


@dataclass(frozen=True)
class Published:
    """A row of the file. value: in the units of results.json, so shares from 0 to 1 and nats per token."""

    model: str
    source: str
    variant: Variant
    task: str
    context_factor: int
    value: float
    metric: str | None


@dataclass(frozen=True)
class Beside:
    """A published number and the run's (None where the run has none); shown and in full."""

    published: Published
    run: float | None

    @property
    def label(self) -> str:
        return LOOKS[self.published.variant].label

    @property
    def place(self) -> str:
        metric = f" ({self.published.metric})" if self.published.metric else ""
        return f"{self.published.task}{metric} at {self.published.context_factor}x"

    @property
    def theirs(self) -> str:
        return f"{self.published.value:.3f}"

    @property
    def ours(self) -> str:
        return "–" if self.run is None else f"{self.run:.3f}"

    @property
    def difference(self) -> str:
        return "–" if self.run is None else f"{self.run - self.published.value:+.3f}".replace("-", "−")


@dataclass(frozen=True)
class PublishedTable:
    """Rows by source, in the order of the file."""

    model: str
    groups: dict[str, tuple[Beside, ...]]
    csv: str


def published_rows(recipe: Recipe) -> list[Published]:
    """The rows for the run's model; none where report.published is not set.

    Raises: RecipeError with file and line for what cannot be read, and where the file has no row for the model.
    """
    path = recipe.report.published
    if path is None:
        return []
    rows = read_published(path)
    name = model_name(recipe)
    of_model = [row for row in rows if row.model.lower() == name.lower()]
    if not of_model:
        known = tuple(dict.fromkeys(row.model for row in rows))
        others = nearest(name, known) if known else "it has no rows"
        raise RecipeError(
            f"report.published: {path} has no row for model {name!r}; {others}; set report.published_model"
        )
    return of_model


def model_name(recipe: Recipe) -> str:
    """The model whose published numbers are shown."""
    return recipe.report.published_model or recipe.model.path.rstrip("/").rsplit("/", 1)[-1]


def read_published(path: Path) -> list[Published]:
    """Every row of the CSV file. Raises: RecipeError as one line with file:line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise RecipeError(f"report.published: {path}: cannot read it: {reason}") from None
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in _ALL_COLUMNS]
    if missing or unknown:
        problem = f"no column {', '.join(missing)}" if missing else f"unknown column {', '.join(unknown)}"
        raise RecipeError(
            f"{path}:1: {problem}; a file of published numbers has {', '.join(COLUMNS)} and may have metric"
        )
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}:{reader.line_num}"
        if len(cells) != len(header):
            raise RecipeError(f"{where}: {len(cells)} values for {len(header)} columns; put quotes around commas")
        rows.append(parse_row(dict(zip(header, (cell.strip() for cell in cells), strict=True)), where))
    return rows


def parse_row(row: dict[str, str], where: str) -> Published:
    """Raises: RecipeError naming `where`, the value and what is allowed."""
    for name in ("model", "source", "task"):
        if not row[name]:
            raise RecipeError(f"{where}: {name} is empty; every row has one")
    variants = get_args(Variant)
    if row["variant"] not in variants:
        raise RecipeError(f"{where}: unknown variant {row['variant']!r}; {nearest(row['variant'], variants)}")
    if not row["context_factor"].isdecimal() or int(row["context_factor"]) < 1:
        raise RecipeError(f"{where}: context_factor {row['context_factor']!r} is not a whole number from 1")
    try:
        value = float(row["value"])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecipeError(f"{where}: value {row['value']!r} is not a number")
    if row["task"] not in _UNBOUNDED and not 0 <= value <= 1:
        raise RecipeError(
            f"{where}: value {value:g} of {row['task']} is not a share from 0 to 1; divide percent by 100"
        )
    return Published(
        model=row["model"],
        source=row["source"],
        variant=row["variant"],  # type: ignore[arg-type]
        task=row["task"],
        context_factor=int(row["context_factor"]),
        value=value,
        metric=row.get("metric") or None,
    )


def published_table(recipe: Recipe, results: Results) -> PublishedTable | None:
    """The run's numbers beside the published ones; None where none are given. Raises: RecipeError."""
    rows = published_rows(recipe)
    if not rows:
        return None
    groups: dict[str, list[Beside]] = {}
    for row in rows:
        score = measure(results, row.task, row.metric).scores.get((row.variant, row.context_factor))
        groups.setdefault(row.source, []).append(Beside(row, None if score is None else score.value))
    fields = ["source", "model", "variant", "task", "metric", "context_factor", "published", "run", "difference"]
    lines = []
    for beside in (beside for group in groups.values() for beside in group):
        row, run = beside.published, beside.run
        place = [row.source, row.model, row.variant, row.task, row.metric, row.context_factor, row.value]
        lines.append([*place, run, None if run is None else run - row.value])
    return PublishedTable(
        model_name(recipe), {source: tuple(group) for source, group in groups.items()}, to_csv(fields, lines)
    )
