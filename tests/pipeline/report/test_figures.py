"""Plots from the numbers that they are given."""

import re
from itertools import pairwise

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report import figures
from pipeline.report.evaluation_plots import length_plot
from pipeline.report.variants import LOOKS


def test_variants_can_be_told_apart() -> None:
    assert len({look.color for look in LOOKS.values()}) == len({look.marker for look in LOOKS.values()}) == len(LOOKS)
    assert LOOKS["drope"].width == max(look.width for look in LOOKS.values())


def test_curves_lie_where_the_scores_say(run) -> None:
    """Heights in the drawing are proportional to the losses, and lengths are one octave apart."""
    results = run.results(run.recipe().evaluation)
    drawing = length_plot(results, "loss", "loss")
    assert drawing is not None
    svg = drawing.svg
    path = re.search(rf'd="M ([^"]*?)"[^>]*stroke: {LOOKS["rope"].color}; stroke-width: 1.6', svg.replace("\n", " "))
    assert path is not None
    points = [tuple(map(float, pair.split())) for pair in path.group(1).split(" L ")]
    losses = [s.value for s in results.scores if (s.task, s.variant) == ("loss", "rope")]
    steps = [right[0] - left[0] for left, right in pairwise(points)]
    assert steps == pytest.approx([steps[0]] * 3, rel=1e-4)
    scale = (points[3][1] - points[0][1]) / (losses[3] - losses[0])
    assert [(y - points[0][1]) / scale for _, y in points] == pytest.approx([v - losses[0] for v in losses], abs=1e-3)
    assert scale < 0  # up is more


def test_a_description_is_escaped_and_the_page_sets_the_size() -> None:
    svg = '<?xml version="1.0"?>\n'
    svg += '<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt" viewBox="0 0 9 9"><g/></svg>'
    assert figures.inline(svg, 'a "b" <c>') == (
        '<svg role="img" aria-label="a &quot;b&quot; &lt;c&gt;" xmlns="http://www.w3.org/2000/svg" '
        'viewBox="0 0 9 9"><g/></svg>'
    )


@figures.styled
def drawn_legend(names: list[str]) -> tuple[Figure, Axes]:
    figure, axes = figures.new_figure("Legend")
    for place, name in enumerate(names):
        axes.plot([0, 1], [place, place], "o-", label=f"{name}{place}")
    figures.add_legend(figure)
    figure.draw_without_rendering()
    return figure, axes


@pytest.mark.parametrize(
    "names", [[look.label for look in LOOKS.values()], ["A rather long name of a line"] * 5, ["a", "b"], ["a" * 40]]
)
def test_a_legend_fits_into_its_figure_below_the_plot(names: list[str]) -> None:
    """Against matplotlib's own measure of what it has drawn."""
    figure, axes = drawn_legend(names)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= axes.get_tightbbox().y0
    assert len(legend.get_texts()) == len(names)
    assert axes.bbox.height > 0.5 * 3.3 * figure.dpi  # the legend grows the figure, not into the plot
