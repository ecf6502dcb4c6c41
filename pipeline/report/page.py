"""One static HTML page about a run, and beside it its plots as SVG and its tables as CSV."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eval.results import Results
from model_surgery.files import atomic_path
from pipeline.recalibration.config import RecalibrationConfig
from pipeline.recipe import Recipe
from pipeline.report import plots, tables, training_plots
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
    training_plots: list[Plot]
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
    *(f"{name}.svg" for name in ("recall_by_length", "loss_by_length", "loss_by_position", "recalibration")),
    *(f"{name}.svg" for name in ("validation_by_length", "validation_by_position", "recall_probe", "optimization")),
    *(f"{name}.csv" for name in ("comparison", "recall_by_length", "loss_by_length", "tasks")),
)
"""Every file that can lie beside the page; those of an earlier report are removed."""


def collect(data: RunData) -> Content:
    """Plots, tables and sentences from a run's inputs."""
    results = data.results
    drawn = {"evaluation": [*draw(results)] if results is not None else [], "training": [*draw_training(data)]}
    files = {f"{name}.svg": svg for made in drawn.values() for name, svg, _ in made}
    shown = {
        place: [Plot(f"{name}.svg", Markup(plots.inline(svg, caption)), caption) for name, svg, caption in made]
        for place, made in drawn.items()
    }
    shown_tables = []
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
        plots=shown["evaluation"],
        training_plots=shown["training"],
        tables=shown_tables,
        comparisons=compared,
        explained=explain(results.config.variants, results.config.softmax_scale_c) if results is not None else [],
        files=files,
    )


Drawn = tuple[str, str, str]
"""Name, SVG and caption of a plot."""


def draw(results: Results) -> Iterator[Drawn]:
    """What was evaluated, drawn."""
    made = (
        (
            "recall_by_length",
            plots.length_plot(results, "recall", "recall"),
            "Recall of facts from the context, with one standard error, against the context length.",
        ),
        (
            "loss_by_length",
            plots.length_plot(results, "loss", "loss"),
            "Loss on held-out text against the context length.",
        ),
        (
            "loss_by_position",
            plots.position_plot(results, "position"),
            "Loss on held-out text along the position, at the longest evaluated length.",
        ),
    )
    yield from ((name, svg, caption) for name, svg, caption in made if svg is not None)


def draw_training(data: RunData) -> Iterator[Drawn]:
    """How the training went, drawn; the recalibration's numbers, and the control's beside them."""
    settings, metrics = data.recipe.recalibration, data.metrics
    drop = settings.drop_at_step
    source_loss = source_loss_at_1x(data.results) if data.results is not None else None
    made = (
        (
            "recalibration",
            training_plots.recalibration_plot(metrics, source_loss, drop, "recalibration"),
            f"Training and validation loss during recalibration, {embedding_in_words(settings)}.",
        ),
        (
            "optimization",
            training_plots.optimization_plot(metrics.get("recalibration", []), settings.gradient_clip, "optimization"),
            "Gradient norm before clipping, and the learning rate, during recalibration.",
        ),
        (
            "validation_by_length",
            training_plots.lengths_plot(metrics, "validation_loss", drop, "validation"),
            "Loss on held-out rows of the training length and of multiples of it, during training.",
        ),
        (
            "validation_by_position",
            training_plots.final_position_plot(data.positions, data.recipe.data.row_length, "validation-position"),
            "Loss on held-out rows along the position, at the end of training.",
        ),
        (
            "recall_probe",
            training_plots.lengths_plot(metrics, "recall", drop, "probe"),
            "Share of a repeated sequence of random tokens that the model gives a probability above 1/2.",
        ),
    )
    yield from ((name, svg, caption) for name, svg, caption in made if svg is not None)


def embedding_in_words(settings: RecalibrationConfig) -> str:
    """What the trained model told positions by."""
    if settings.position_embedding == "rope":
        return "with RoPE kept"
    if settings.drop_at_step is None:
        return "with no positional embedding"
    return f"with RoPE up to step {settings.drop_at_step:,} and without positional embedding from there"


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
