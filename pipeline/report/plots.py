"""The plots of the evaluation as SVG text: the same input gives the same bytes, nothing refers to the network."""

import io
import re
from html import escape

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from eval.results import Results, Score
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
_SIZE = (4.9, 3.9)
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_DODGE = 0.035
"""Shift between variants in octaves, so that error bars do not hide each other."""


@styled
def length_plot(results: Results, task: str, name: str) -> str | None:
    """Loss or recall against the context factor (log2), with the tokens; None where the task was not evaluated."""
    scores = [score for score in results.scores if score.task == task]
    if not scores:
        return None
    recall = task == "recall"
    figure, axes = new_figure("Recall against context length" if recall else "Loss against context length")
    variants = in_order(results.config.variants)
    for place, variant in enumerate(variants):
        mine = sorted((s for s in scores if s.variant == variant), key=lambda score: score.context_factor)
        shift = _DODGE * (place - (len(variants) - 1) / 2) if recall else 0.0
        draw_scores(axes, mine, LOOKS[variant], shift, bars=recall)
    label_lengths(axes, results)
    axes.set_ylabel("facts recalled (share)" if recall else "loss (nats per token)")
    if recall:
        axes.set_ylim(-0.03, 1.04)
        if "recall" in results.chance:
            axes.axhline(results.chance["recall"], color="#777777", linestyle=":", linewidth=1.4, label="Chance")
    return render(figure, name)


def new_figure(title: str) -> tuple[Figure, Axes]:
    """A figure with one plot, in the report's style."""
    figure = Figure(figsize=_SIZE)
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def draw_scores(axes: Axes, scores: list[Score], look: Look, shift: float, *, bars: bool) -> None:
    """One variant's line; `shift` in octaves."""
    x = [score.context_factor * 2**shift for score in scores]
    errors = [score.stderr or 0.0 for score in scores] if bars else None
    axes.errorbar(
        x, [score.value for score in scores], yerr=errors, capsize=2.5, elinewidth=1.2, markersize=6, **line(look)
    )


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


def label_lengths(axes: Axes, results: Results) -> None:
    """A log2 axis with a tick at every evaluated length: the factor, and the tokens below it."""
    factors = results.config.lengths
    axes.set_xscale("log", base=2)
    axes.set_xticks(factors, [f"{factor}x\n{factor * results.training_length:,}" for factor in factors])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(factors[0] * 2**-0.25, factors[-1] * 2**0.25)
    axes.set_xlabel("context length (times the training length; tokens)")


@styled
def position_plot(results: Results, name: str) -> str | None:
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


def render(figure: Figure, name: str) -> str:
    """The figure as SVG, its legend below the plot; ids begin with `name`, so that several fit into one page."""
    buffer = io.StringIO()
    entries = sum(len(axes.get_legend_handles_labels()[0]) for axes in figure.axes)
    figure.legend(loc="outside lower center", ncols=min(4, -(-entries // 2)), handlelength=2.4, columnspacing=1.4)
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    text = re.sub(r'\bid="', f'id="{name}-', buffer.getvalue())
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    return "\n".join(part.rstrip() for part in text.splitlines()) + "\n"


def inline(svg: str, description: str) -> str:
    """The SVG for use inside a page: without its XML prologue, sized by the page, with a text for screen readers."""
    opening, rest = svg[svg.index("<svg") :].split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening).removeprefix("<svg")
    return f'<svg role="img" aria-label="{escape(description)}"{opening}>{rest}'
