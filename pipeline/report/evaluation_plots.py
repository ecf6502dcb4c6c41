"""The plots of the evaluation: loss, recall and needles against the context length, loss along the position."""

from dataclasses import replace

import numpy as np

from eval.results import Results, Score
from pipeline.report.figures import (
    Drawing,
    dodge,
    draw_line,
    draw_scores,
    label_lengths,
    label_positions,
    new_figure,
    render,
    styled,
)
from pipeline.report.measures import LOWER_IS_BETTER, NEEDLES, measure
from pipeline.report.variants import LOOKS, Look, in_order

_TITLES = {
    "recall": ("Recall against context length", "facts recalled (share)"),
    NEEDLES: ("Needles against context length", "needles found (share)"),
    "loss": ("Loss against context length", "loss (nats per token)"),
}


@styled
def length_plot(results: Results, task: str, name: str) -> Drawing | None:
    """Loss, recall or needles of every variant against the context length; None if that was not evaluated."""
    scored = measure(results, task)
    lines = [(LOOKS[variant], scored.of(variant)) for variant in in_order(scored.variants)]
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
                look = LOOKS[variant]
                draw_line(axes, middles, curve.loss, replace(look, marker=""), thinned=0.8)
    label_positions(axes, longest, results.training_length)
    return render(figure, name)
