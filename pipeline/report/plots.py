"""The plots of the evaluation as SVG and PNG: the same input gives the same bytes, nothing refers to the network."""

import io
import re
from dataclasses import dataclass
from html import escape

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from eval.results import Results, Score
from pipeline.report.measures import LOWER_IS_BETTER, NEEDLES, measure
from pipeline.report.variants import LOOKS, Look, in_order

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "drope",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}
styled = matplotlib.style.context(("default", _STYLE))
"""Decorates whatever draws: matplotlib's own defaults and the above, whatever the user's matplotlibrc says."""
_SIZE = (4.9, 3.3)
"""Inches, without the legend."""
_LEGEND_LINE = 0.21
"""Inches of a line of the legend."""
_LEGEND_ENTRY = (0.6, 0.072)
"""Inches of an entry of the legend: its line with the gaps, and each letter."""
_DOTS_PER_INCH = 160
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_DODGE = 0.035
"""Shift between variants in octaves, so that error bars do not hide each other."""


@dataclass(frozen=True)
class Drawing:
    """One figure in two forms: the SVG stands in the page, both lie beside it."""

    svg: str
    png: bytes


_TITLES = {
    "recall": ("Recall against context length", "facts recalled (share)"),
    NEEDLES: ("Needles against context length", "needles found (share)"),
    "loss": ("Loss against context length", "loss (nats per token)"),
}


@styled
def length_plot(results: Results, task: str, name: str) -> Drawing | None:
    """Loss, recall or needles of every variant against the context length; None if that was not evaluated."""
    found = measure(results, task)
    lines = [(LOOKS[variant], found.of(variant)) for variant in in_order(found.variants)]
    chance = results.chance.get(task)
    return lines_by_length(task, lines, results.training_length, chance, name) if lines else None


@styled
def lines_by_length(
    task: str, lines: list[tuple[Look, list[Score]]], training_length: int | None, chance: float | None, name: str
) -> Drawing:
    """Scores against the context factor (log2), a line for each of `lines`, with the tokens where they are given."""
    share = task not in LOWER_IS_BETTER
    title, label = _TITLES[task]
    figure, axes = new_figure(title)
    for place, (look, scores) in enumerate(lines):
        draw_scores(axes, scores, look, dodge(place, len(lines)) if share else 0.0, bars=share)
    label_lengths(axes, sorted({score.context_factor for _, scores in lines for score in scores}), training_length)
    axes.set_ylabel(label)
    if share:
        axes.set_ylim(-0.03, 1.04)
        if chance is not None:
            axes.axhline(chance, color="#777777", linestyle=":", linewidth=1.4, label="Chance")
    return render(figure, name)


def dodge(place: int, of: int) -> float:
    """Octaves that line `place` is shifted by; half as far where there are many lines."""
    return _DODGE * (place - (of - 1) / 2) * min(1.0, 5 / of)


def new_figure(title: str) -> tuple[Figure, Axes]:
    """A figure with one plot, in the report's style."""
    figure = Figure(figsize=_SIZE)
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def draw_scores(axes: Axes, scores: list[Score], look: Look, shift: float, *, bars: bool, small: bool = False) -> None:
    """One variant's line; `shift` in octaves; `small` for a panel among others."""
    x = [score.context_factor * 2**shift for score in scores]
    errors = [score.stderr or 0.0 for score in scores] if bars else None
    drawn = line(look) | ({"linewidth": 0.7 * look.width} if small else {})
    sizes = {"capsize": 1.5, "elinewidth": 0.9, "markersize": 3.5} if small else {"elinewidth": 1.2, "markersize": 6}
    axes.errorbar(x, [score.value for score in scores], yerr=errors, **{"capsize": 2.5} | sizes, **drawn)


def line(look: Look) -> dict[str, object]:
    """How matplotlib draws a variant; thick lines lie on top."""
    return {
        "label": look.label,
        "color": look.color,
        "marker": look.marker,
        "linewidth": look.width,
        "linestyle": look.line,
        "zorder": 2 + look.width,
    }


def label_lengths(axes: Axes, factors: list[int], training_length: int | None) -> None:
    """A log2 axis with a tick at every evaluated length: the factor, and the tokens below it where they are wanted."""
    axes.set_xscale("log", base=2)
    below = {factor: f"\n{factor * training_length:,}" if training_length else "" for factor in factors}
    axes.set_xticks(factors, [f"{factor}x{below[factor]}" for factor in factors])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(factors[0] * 2**-0.25, factors[-1] * 2**0.25)
    axes.set_xlabel(f"context length (times the training length{'; tokens' if training_length else ''})")


@styled
def position_plot(results: Results, name: str) -> Drawing | None:
    """Loss along the position at the longest length; None where there are no curves."""
    if not results.curves:
        return None
    longest = max(curve.length for curve in results.curves)
    factor = longest // results.training_length
    figure, axes = new_figure(f"Loss along the position at {factor}x")
    for variant in in_order(tuple(curve.variant for curve in results.curves)):
        for curve in results.curves:
            if curve.variant == variant and curve.length == longest:
                middles = (np.array(curve.edges[:-1]) + np.array(curve.edges[1:])) / 2
                axes.plot(
                    middles,
                    curve.loss,
                    **line(LOOKS[variant]) | {"marker": "", "linewidth": LOOKS[variant].width * 0.8},
                )
    label_positions(axes, longest, results.training_length)
    return render(figure, name)


def label_positions(axes: Axes, length: int, training_length: int) -> None:
    """Loss against the position in rows of `length` tokens; a line where rows ended in training."""
    axes.axvline(training_length, color="#777777", linestyle=":", linewidth=1.4, label="Training length")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(f"position in rows of {length:,} tokens")
    axes.set_ylabel("loss (nats per token)")


def render(figure: Figure, name: str) -> Drawing:
    """The figure with its legend below the plots; ids begin with `name`, so that several fit into one page."""
    add_legend(figure)
    text, image = io.StringIO(), io.BytesIO()
    figure.savefig(text, format="svg", metadata=_NO_METADATA)
    figure.set_layout_engine("none")  # what was laid out for the one form is right for the other
    figure.savefig(image, format="png", metadata={"Software": None}, dpi=_DOTS_PER_INCH)
    svg = re.sub(r'\bid="', f'id="{name}-', text.getvalue())
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    return Drawing("\n".join(part.rstrip() for part in svg.splitlines()) + "\n", image.getvalue())


def add_legend(figure: Figure) -> None:
    """One entry a label, in as many columns as fit; the figure grows by the legend's lines."""
    entries: dict[str, object] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    width, height = figure.get_size_inches()
    columns = legend_columns(list(entries), width)
    figure.set_size_inches(width, height + _LEGEND_LINE * (1 - (-len(entries) // columns)))
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=columns,
        handlelength=2.4,
        columnspacing=1.4,
    )


def legend_columns(labels: list[str], width: float) -> int:
    """As many columns as fit into `width` inches, at least two lines and at most six columns.

    matplotlib fills column after column, the first of them with one entry more where they do not come out even.
    """
    line, letter = _LEGEND_ENTRY
    for columns in range(min(6, -(-len(labels) // 2)), 1, -1):
        longest = [max(map(len, part)) for part in np.array_split(labels, columns)]
        if sum(line + letter * letters for letters in longest) <= width:
            return columns
    return 1


def inline(svg: str, description: str) -> str:
    """The SVG for use inside a page: without its XML prologue, sized by the page, with a text for screen readers."""
    opening, rest = svg[svg.index("<svg") :].split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening).removeprefix("<svg")
    return f'<svg role="img" aria-label="{escape(description)}"{opening}>{rest}'
