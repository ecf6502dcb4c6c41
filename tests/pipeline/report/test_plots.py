"""Plots from the numbers that they are given."""

import re
from itertools import pairwise

import pytest

from pipeline.report import plots
from pipeline.report.variants import LOOKS


def test_variants_can_be_told_apart() -> None:
    assert len({look.color for look in LOOKS.values()}) == len({look.marker for look in LOOKS.values()}) == len(LOOKS)
    assert LOOKS["drope"].width == max(look.width for look in LOOKS.values())


def test_curves_lie_where_the_scores_say(run) -> None:
    """Heights in the drawing are proportional to the losses, and lengths are one octave apart."""
    results = run.results(run.recipe().evaluation)
    drawing = plots.length_plot(results, "loss", "loss")
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
    assert plots.inline(svg, 'a "b" <c>') == (
        '<svg role="img" aria-label="a &quot;b&quot; &lt;c&gt;" xmlns="http://www.w3.org/2000/svg" '
        'viewBox="0 0 9 9"><g/></svg>'
    )
