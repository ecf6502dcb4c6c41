"""How well a fact is found by where it stands: maps of depth against length, and the curve at the longest length."""

from dataclasses import dataclass

import matplotlib.cm
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.config import SWEPT_TASKS
from eval.results import Results, SampleValues
from pipeline.report.figures import Drawing, draw_errors, new_figure, render, styled
from pipeline.report.variants import LOOKS, in_order

_BINS = 10
"""Equal parts of the length where depths are drawn at random."""
_COLUMNS = 4
_PANEL = (2.5, 2.6)
"""Inches."""
_COLORS = matplotlib.colormaps["cividis"].resampled(20)
"""Rising evenly in lightness, also for the colour-blind; few enough steps that the bar stays a drawing."""


@dataclass(frozen=True)
class Depths:
    """Share found by depth. edges: [parts + 1], where a map draws its cells; middles, shares and their standard errors:
    [parts]. A part without a sample is NaN, and so is the error of one with a single sample."""

    edges: np.ndarray
    middles: np.ndarray
    shares: np.ndarray
    errors: np.ndarray


def depth_task(results: Results, first: str) -> str | None:
    """`first` where it was evaluated with depths, else recall, else None."""
    swept = {values.task for values in results.values if values.depths}
    return next((task for task in (first, "recall") if task in swept), None)


def by_depth(values: SampleValues) -> Depths:
    """At the depths that the task sweeps, or in ten parts where depths are drawn at random."""
    depths, rights = np.asarray(values.depths), np.asarray(values.values)
    if values.task in SWEPT_TASKS:
        middles = np.unique(np.round(depths, 6))
        edges = edges_around(middles)
        part = np.searchsorted(middles, np.round(depths, 6))
    else:
        edges = np.linspace(0, 1, _BINS + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        part = np.minimum((depths * _BINS).astype(int), _BINS - 1)
    groups = [rights[part == place] for place in range(len(middles))]
    shares = np.array([group.mean() if len(group) else np.nan for group in groups])
    errors = np.array([group.std(ddof=1) / len(group) ** 0.5 if len(group) > 1 else np.nan for group in groups])
    return Depths(edges, middles, shares, errors)


def edges_around(middles: np.ndarray) -> np.ndarray:
    """Edges halfway between middles, and as far beyond the first and the last."""
    if len(middles) == 1:
        return middles[0] + np.array([-0.5, 0.5])
    inner = (middles[:-1] + middles[1:]) / 2
    return np.concatenate([[2 * middles[0] - inner[0]], inner, [2 * middles[-1] - inner[-1]]])


@styled
def depth_map(results: Results, name: str) -> Drawing | None:
    """Length against depth, a panel for every variant, colour for the share found; None where no depths are known."""
    task = depth_task(results, "niah_depth")
    if task is None:
        return None
    of_task = [values for values in results.values if values.task == task]
    variants = in_order(tuple({values.variant for values in of_task}))
    factors = sorted({values.context_factor for values in of_task})
    columns = min(_COLUMNS, len(variants))
    rows = -(-len(variants) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns + 0.7, _PANEL[1] * rows))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    cells = {(values.variant, values.context_factor): by_depth(values) for values in of_task}
    for place, axes in enumerate(grid.flat):
        if place < len(variants):
            columns_of = {x: cells[variants[place], f] for x, f in enumerate(factors) if (variants[place], f) in cells}
            draw_map(axes, columns_of)
            axes.set_title(LOOKS[variants[place]].label)
            axes.tick_params(labelbottom=place + columns >= len(variants))
        else:
            axes.set_visible(False)
    grid[0, 0].set_xticks(range(len(factors)), [f"{factor}x" for factor in factors])
    grid[0, 0].set_ylim(max(cell.edges[-1] for cell in cells.values()), min(cell.edges[0] for cell in cells.values()))
    grid[0, 0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    figure.supxlabel(f"context length (times {results.training_length:,} tokens)", fontsize=10)
    figure.supylabel("depth of the needle (0%: at the start)", fontsize=10)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), _COLORS)
    figure.colorbar(scale, ax=grid, label="share found", fraction=0.03, aspect=30, pad=0.01)
    return render(figure, name)


def draw_map(axes: Axes, columns: dict[int, Depths]) -> None:
    """A column of cells for every length, the share in each in hundredths; dark on light and light on dark."""
    axes.grid(visible=False)
    for x, depths in columns.items():
        shares = np.ma.masked_invalid(depths.shares[:, None])
        edges = np.array([x - 0.5, x + 0.5])
        axes.pcolormesh(edges, depths.edges, shares, cmap=_COLORS, vmin=0, vmax=1, edgecolor="#ffffff", linewidth=0.6)
        for y, share in zip(depths.middles, depths.shares, strict=True):
            if np.isfinite(share):
                color = "#ffffff" if share < 0.5 else "#000000"
                axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=color)


@styled
def middle_plot(results: Results, name: str) -> Drawing | None:
    """Share right against where the fact stands, at the longest evaluated length; None where no depths are known."""
    task = depth_task(results, "lost_in_the_middle")
    if task is None:
        return None
    of_task = [values for values in results.values if values.task == task]
    longest = max(values.context_factor for values in of_task)
    figure, axes = new_figure(f"By the position of the fact at {longest}x")
    shown = {values.variant: by_depth(values) for values in of_task if values.context_factor == longest}
    variants = in_order(tuple(shown))
    for place, variant in enumerate(variants):
        depths = shown[variant]
        shift = 0.008 * (place - (len(variants) - 1) / 2) * min(1.0, 5 / len(variants))
        errors = np.nan_to_num(depths.errors)
        draw_errors(axes, depths.middles + shift, depths.shares, errors, LOOKS[variant], cap=2, bar=1, marker_size=4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel(f"position in {longest * results.training_length:,} tokens (0%: at the start)")
    axes.set_ylabel("right (share)")
    axes.set_ylim(-0.03, 1.04)
    return render(figure, name)
