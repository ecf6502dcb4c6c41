"""One static HTML page about a run, and beside it its plots as SVG and its tables as CSV."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eval.results import Results
from model_surgery.files import atomic_path
from pipeline.recipe import Recipe
from pipeline.report import plots, tables
from pipeline.report.claims import summary
from pipeline.report.inputs import RunData, read_run
from pipeline.report.lineage import stage_lines, versions
from pipeline.report.numbers import checks, key_numbers
from pipeline.report.variants import explain

PAGE_FILE = "report.html"


@dataclass(frozen=True)
class Plot:
    """A plot in the page; `file` is the same as a file beside it."""

    file: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Content:
    """What the template shows; `files` are the texts that lie beside the page, by name."""

    data: RunData
    sentences: list[str]
    plots: list[Plot]
    tables: list[tuple[tables.Table, str]]
    comparisons: list[tables.Comparison]
    explained: list[str]
    files: dict[str, str]


def write_report(recipe: Recipe, run: Path, out_dir: Path) -> Path:
    """Writes out_dir/report.html and its plots and tables; returns the page's path.

    Equal inputs give equal bytes. Raises: RecipeError if no stage of the run is complete or a file that the page is
    made from has changed; EvaluationError for results of another form; SurgeryError if the disk is full.
    """
    content = collect(read_run(recipe, run))
    page = render(content)
    for name in (*FILES, PAGE_FILE):
        (out_dir / name).unlink(missing_ok=True)
    for name, text in (*content.files.items(), (PAGE_FILE, page)):
        with atomic_path(out_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return out_dir / PAGE_FILE


FILES = (
    *(f"{name}.svg" for name in ("recall_by_length", "loss_by_length", "recalibration", "loss_by_position")),
    *(f"{name}.csv" for name in ("comparison", "recall_by_length", "loss_by_length", "tasks")),
)
"""Every file that can lie beside the page; those of an earlier report are removed."""


def collect(data: RunData) -> Content:
    """Plots, tables and sentences from a run's inputs."""
    results = data.results
    files: dict[str, str] = {}
    shown_plots, shown_tables = [], []
    for name, svg, caption in draw(data):
        files[f"{name}.svg"] = svg
        shown_plots.append(Plot(f"{name}.svg", Markup(plots.inline(svg, caption)), caption))
    compared: list[tables.Comparison] = []
    if results is not None:
        for name, table in tabulate(results):
            files[f"{name}.csv"] = table.csv
            shown_tables.append((table, f"{name}.csv"))
        compared, text = tables.comparisons(results)
        if compared:
            files["comparison.csv"] = text
    return Content(
        data=data,
        sentences=summary(results) if results is not None else [],
        plots=shown_plots,
        tables=shown_tables,
        comparisons=compared,
        explained=explain(results.config.variants, results.config.softmax_scale_c) if results is not None else [],
        files=files,
    )


def draw(data: RunData) -> Iterator[tuple[str, str, str]]:
    """Name, SVG and caption of every plot that the run has data for."""
    results = data.results
    source_loss = source_loss_at_1x(results) if results is not None else None
    made = [
        (
            "recalibration",
            plots.recalibration_plot(data.metrics, source_loss, "recalibration"),
            "Training and validation loss during recalibration, with no positional embedding.",
        )
    ]
    if results is not None:
        lengths = (
            ("recall", "Recall of facts from the context, with one standard error,"),
            ("loss", "Loss on held-out text"),
        )
        made = [
            *(
                (f"{task}_by_length", plots.length_plot(results, task, task), f"{what} against the context length.")
                for task, what in lengths
            ),
            *made,
            (
                "loss_by_position",
                plots.position_plot(results, "position"),
                "Loss on held-out text along the position, at the longest evaluated length.",
            ),
        ]
    for name, svg, caption in made:
        if svg is not None:
            yield name, svg, caption


def tabulate(results: Results) -> Iterator[tuple[str, tables.Table]]:
    """Name and table of everything that was evaluated."""
    made = [
        ("recall_by_length", tables.length_table(results, "recall", "Recall against context length")),
        ("loss_by_length", tables.length_table(results, "loss", "Loss against context length")),
        ("tasks", tables.task_table(results)),
    ]
    for name, table in made:
        if table is not None:
            yield name, table


def source_loss_at_1x(results: Results) -> float | None:
    """The loss of the source as published at its training length, where it was evaluated."""
    wanted = ("loss", "rope", 1)
    found = (s.value for s in results.scores if (s.task, s.variant, s.context_factor) == wanted)
    return next(found, None)


def render(content: Content) -> str:
    """The page; everything that comes from outside is escaped by the template engine."""
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    data = content.data
    return environment.get_template("report.html.j2").render(
        title=data.recipe.report.title or data.recipe.name,
        notes=data.recipe.report.notes,
        content=content,
        data=data,
        numbers=key_numbers(data),
        checks=checks(data),
        stages=stage_lines(data.manifests),
        versions=versions(data.manifests),
    )
