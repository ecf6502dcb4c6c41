"""One static HTML page about a run, and beside it its plots as SVG and PNG and its tables as CSV."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eval.results import Results
from foundation.files import atomic_path
from pipeline.recipe.recipe import Recipe
from pipeline.report import tables
from pipeline.report.claims import all_claims, summary
from pipeline.report.claims_table import Comparisons, comparisons
from pipeline.report.cost import CostTable, cost_table
from pipeline.report.figures import inline
from pipeline.report.inputs import RunData, StageNames, read_run
from pipeline.report.lineage import stage_lines, versions, versions_csv
from pipeline.report.numbers import Check, checks, checks_csv, key_numbers
from pipeline.report.page_plots import EVALUATION, TRAINING, PagePlot, evaluation_page_plots, training_page_plots
from pipeline.report.published import PublishedTable, published_table
from pipeline.report.variants import explain

PAGE_FILE = "report.html"
TABLES = (
    *("comparison", "recall_by_length", "needles_by_length", "needles_by_task", "longbench", "loss_by_length"),
    *("tasks", "published", "cost", "verification", "versions"),
)
FILES = (
    *(f"{name}.{ending}" for name in (*EVALUATION, *TRAINING) for ending in ("svg", "png")),
    *(f"{name}.csv" for name in TABLES),
)
"""Every file that can lie beside the page; those of an earlier report are removed."""


@dataclass(frozen=True)
class InlinePlot:
    """A plot in the page; its files bear its name."""

    name: str
    svg: Markup
    caption: str
    wide: bool


@dataclass(frozen=True)
class Evaluated:
    """What the evaluation gives the page; `texts` are its tables as CSV, by name."""

    sentences: list[str]
    plots: list[PagePlot]
    tables: dict[str, tables.Table]
    comparisons: list[Comparisons]
    published: PublishedTable | None
    cost: CostTable
    explained: list[str]
    texts: dict[str, str]


@dataclass(frozen=True)
class Content:
    """What the template shows; `files` are what lies beside the page, by name."""

    data: RunData
    evaluated: Evaluated | None
    plots: list[InlinePlot]
    training_plots: list[InlinePlot]
    checks: list[Check]
    files: dict[str, bytes]


def write_report(recipe: Recipe, run: Path, out_dir: Path, stage_names: StageNames) -> Path:
    """Writes out_dir/report.html and its plots and tables; returns the page's path.

    Equal inputs give equal bytes. Raises: RecipeError if no stage of the run is complete, a file that the page is
    made from has changed or published numbers cannot be read; EvaluationError for results of another form;
    DiskError if the disk is full.
    """
    content = collect(read_run(recipe, run, stage_names))
    page = render(content).encode()
    for name in (*FILES, PAGE_FILE):
        (out_dir / name).unlink(missing_ok=True)
    for name, contents in (*content.files.items(), (PAGE_FILE, page)):
        with atomic_path(out_dir / name) as temporary:
            temporary.write_bytes(contents)
    return out_dir / PAGE_FILE


def collect(data: RunData) -> Content:
    """Plots, tables and sentences from a run's inputs."""
    evaluation = None if data.results is None else evaluated(data.recipe, data.results)
    evaluation_plots, training_plots = evaluation.plots if evaluation else [], [*training_page_plots(data)]
    verifications = checks(data)
    texts = {**evaluation.texts} if evaluation else {}
    if verifications:
        texts["verification"] = checks_csv(verifications)
    texts["versions"] = versions_csv(versions(data.manifests))
    files = {f"{name}.csv": text.encode() for name, text in texts.items()}
    for plot in (*evaluation_plots, *training_plots):
        files |= {f"{plot.name}.svg": plot.drawing.svg.encode(), f"{plot.name}.png": plot.drawing.png}
    return Content(data, evaluation, placed(evaluation_plots), placed(training_plots), verifications, files)


def evaluated(recipe: Recipe, results: Results) -> Evaluated:
    """Plots, tables and sentences of the results. Raises: RecipeError for published numbers that cannot be read."""
    claims, score_tables = all_claims(results), dict(tables.tabulate(results))
    compared, text = comparisons(results, claims)
    published, cost = published_table(recipe, results), cost_table(results)
    texts = {name: table.csv for name, table in score_tables.items()} | {"cost": cost.csv}
    texts |= ({"comparison": text} if compared else {}) | ({"published": published.csv} if published else {})
    return Evaluated(
        sentences=summary(claims, results.chance),
        plots=[*evaluation_page_plots(results)],
        tables=score_tables,
        comparisons=compared,
        published=published,
        cost=cost,
        explained=explain(results.config.variants, results.config.softmax_scale_c),
        texts=texts,
    )


def placed(plots: Iterable[PagePlot]) -> list[InlinePlot]:
    """Plots as they stand in the page."""
    return [InlinePlot(one.name, Markup(inline(one.drawing.svg, one.caption)), one.caption, one.wide) for one in plots]


def environment() -> Environment:
    """The templates' engine; it escapes everything that comes from outside."""
    return Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(content: Content) -> str:
    """The page."""
    data = content.data
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=data.recipe.report.title or data.recipe.name,
            notes=data.recipe.report.notes,
            content=content,
            data=data,
            numbers=key_numbers(data),
            stages=stage_lines(data.manifests),
            versions=versions(data.manifests),
        )
    )
