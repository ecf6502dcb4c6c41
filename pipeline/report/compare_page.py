"""The page that compares runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from foundation.files import atomic_path
from pipeline.errors import RecipeError
from pipeline.report.compare import sections
from pipeline.report.evaluation_plots import lines_by_length
from pipeline.report.figures import inline
from pipeline.report.inputs import StageNames
from pipeline.report.measures import NEEDLES
from pipeline.report.page import environment
from pipeline.report.runs import Run, key_facts, read_runs
from pipeline.report.variants import LineStyle, Look

_COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#b8a900")
"""Okabe and Ito's, which colour-blind readers can tell apart, and two more."""
_MARKERS = "osD^vPXp"
_DASHES: tuple[LineStyle, ...] = ("-", "--", ":")
_CAPTIONS = {
    "loss": "Loss on held-out text against the context length.",
    "recall": "Recall of facts from the context, with one standard error, against the context length.",
    NEEDLES: "Needles found, mean over RULER's tasks, with one standard error, against the context length.",
}


def write_comparison(folders: Sequence[Path], out: Path, stage_names: StageNames) -> Path:
    """Writes the page and returns its path; all of it is in this one file.

    Raises: RecipeError or EvaluationError for runs that cannot be compared, before anything is written.
    """
    page = render_comparison(read_runs(folders, stage_names))
    if out.is_dir():
        raise RecipeError(f"--out {out}: is a folder; name the page, such as {out / 'compare.html'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        temporary.write_bytes(page.encode())
    return out


def look(place: int, name: str) -> Look:
    """How run number `place` is drawn."""
    turn, color = divmod(place, len(_COLORS))
    return Look(name, _COLORS[color], _MARKERS[color], 2.0, _DASHES[turn % len(_DASHES)])


def drawings(runs: Sequence[Run]) -> Iterator[tuple[Markup, str]]:
    """The runs' curves over each other, with captions; with tokens at the axis where all have the same context."""
    lengths = {run.results.training_length for run in runs}
    tokens = lengths.pop() if len(lengths) == 1 else None
    for task, caption in _CAPTIONS.items():
        scores = [(look(place, run.name), run.measure(task).of(run.variant)) for place, run in enumerate(runs)]
        if lines := [(line, of_run) for line, of_run in scores if of_run]:
            drawing = lines_by_length(task, lines, tokens, None, f"compare-{task}")
            yield Markup(inline(drawing.svg, caption)), caption


def render_comparison(runs: Sequence[Run]) -> str:
    """The page; everything that comes from outside is escaped by the template engine."""
    compared = sections(runs)
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            title=f"{', '.join(run.name for run in runs[1:])} against {runs[0].name}",
            runs=[(run, look(place, run.name).color) for place, run in enumerate(runs)],
            facts=key_facts(runs),
            sections=compared,
            plots=list(drawings(runs)),
            unpaired=any(cell and cell.how for section in compared for line in section.lines for cell in line.cells),
        )
    )
