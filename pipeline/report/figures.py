"""Figures as SVG and PNG: the same input gives the same bytes, nothing refers to the network."""

import io
import re
from dataclasses import dataclass
from html import escape

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from eval.results import Score
from pipeline.report.variants import Look

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
    y = [score.value for score in scores]
    errors = [score.stderr or 0.0 for score in scores] if bars else None
    if small:
        draw_errors(axes, x, y, errors, look, cap=1.5, bar=0.9, marker_size=3.5, thinned=0.7)
    else:
        draw_errors(axes, x, y, errors, look, cap=2.5, bar=1.2, marker_size=6)


def draw_errors(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    errors: ArrayLike | None,
    look: Look,
    *,
    cap: float,
    bar: float,
    marker_size: float,
    thinned: float = 1.0,
) -> None:
    """As `draw_line`, with error bars, but none where `errors` is None; sizes in points."""
    axes.errorbar(
        x,
        y,
        yerr=errors,
        capsize=cap,
        elinewidth=bar,
        markersize=marker_size,
        label=look.label,
        color=look.color,
        marker=look.marker,
        linewidth=thinned * look.width,
        linestyle=look.line,
        zorder=2 + look.width,
    )


def draw_line(axes: Axes, x: ArrayLike, y: ArrayLike, look: Look, *, thinned: float = 1.0) -> None:
    """A variant's line, its width times `thinned`; what is thick in other plots lies on top."""
    axes.plot(
        x,
        y,
        markersize=4,
        label=look.label,
        color=look.color,
        marker=look.marker,
        linewidth=thinned * look.width,
        linestyle=look.line,
        zorder=2 + look.width,
    )


def label_lengths(axes: Axes, factors: list[int], training_length: int | None) -> None:
    """A log2 axis with a tick at every evaluated length: the factor, and the tokens below it where they are given."""
    axes.set_xscale("log", base=2)
    below = {factor: f"\n{factor * training_length:,}" if training_length else "" for factor in factors}
    axes.set_xticks(factors, [f"{factor}x{below[factor]}" for factor in factors])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(factors[0] * 2**-0.25, factors[-1] * 2**0.25)
    axes.set_xlabel(f"context length (times the training length{'; tokens' if training_length else ''})")


def label_positions(axes: Axes, length: int, training_length: int) -> None:
    """Loss against the position in rows of `length` tokens; a line where rows ended in training."""
    axes.axvline(training_length, color="#777777", linestyle=":", linewidth=1.4, label="Training length")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(f"position in rows of {length:,} tokens")
    axes.set_ylabel("loss (nats per token)")


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers alone."""
    locator = axis.get_major_locator()
    assert isinstance(locator, MaxNLocator)  # as of every linear axis
    locator.set_params(integer=True)


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
    entries: dict[str, Artist] = {}
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
