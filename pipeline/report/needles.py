"""RULER's needle tasks, each in a small plot."""

from matplotlib.figure import Figure

from eval.results import Results
from pipeline.report.figures import Drawing, dodge, draw_scores, label_lengths, render, styled
from pipeline.report.measures import measure, ruler_tasks
from pipeline.report.tables import heading
from pipeline.report.variants import LOOKS, in_order

_COLUMNS = 4
_PANEL = (2.5, 2.3)
"""Inches."""


@styled
def needle_plots(results: Results, name: str) -> Drawing | None:
    """Share found against the context length, a panel for every task of RULER's; None for fewer than two tasks."""
    tasks = ruler_tasks(results.config)
    if len(tasks) < 2:
        return None
    columns = min(_COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, task in zip(grid.flat, tasks, strict=False):
        scored = measure(results, task)
        variants = in_order(scored.variants)
        for place, variant in enumerate(variants):
            draw_scores(axes, scored.of(variant), LOOKS[variant], dodge(place, len(variants)), bars=True, small=True)
        label_lengths(axes, scored.factors, None)
        axes.set_xlabel("")
        axes.set_ylim(-0.03, 1.04)
        axes.set_title(heading(task)[0])
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(0, len(tasks) - columns) : len(tasks)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("context length")
    figure.supylabel("needles found (share)", fontsize=10)
    return render(figure, name)
