"""The theory probes as one picture: on constant sequences, by epsilon, and on text."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.probes.run import Layer, ProbeResults, Sequence, measure
from pipeline.report.figures import Drawing, render, styled, whole_numbers

_LOOKS = {
    "RoPE, untrained": ("#4d4d4d", "s", "--"),
    "NoPE, untrained": ("#e69f00", "v", "--"),
    "RoPE": ("#4d4d4d", "s", "-"),
    "RoPE removed": ("#e69f00", "v", "-"),
    "DroPE": ("#d55e00", "o", "-"),
}
_ROWS = {
    "bias_previous": "positional bias |A|\n(mass on the token before)",
    "query_grad_previous": "query gradient of A",
    "prefix_spread": "prefix spread\n(share of the norm)",
}
_FLOOR = 1e-17
"""Where zeros are drawn on a logarithmic axis."""


@styled
def probe_plot(results: ProbeResults, name: str = "probes") -> Drawing:
    """Rows are measures; columns a constant sequence by layer, the first layer by epsilon, and text by layer."""
    has_text = any(layer.sequence == "text" for layer in results.layers)
    figure = Figure(figsize=(4.2 * (2 + has_text), 3.1 * len(_ROWS)))
    grid = figure.subplots(len(_ROWS), 2 + has_text, squeeze=False)
    for row, (number, label) in zip(grid, _ROWS.items(), strict=True):
        row[0].set_ylabel(label)
        by_layer(row[0], results, number, "constant")
        by_epsilon(row[1], results, number)
        if has_text:
            by_layer(row[2], results, number, "text")
    titles = ("Constant sequence", "Constant + noise, first layer", "Text")
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title)
    for axes in grid.flat[1:]:
        for artist in axes.get_lines():
            artist.set_label("_")  # one legend for all
    return render(figure, name)


def by_layer(axes: Axes, results: ProbeResults, number: str, sequence: Sequence) -> None:
    """A measure in every layer, on a sequence as it is."""
    for subject in results.subjects:
        layers = [one for one in results.layers if (one.subject, one.sequence) == (subject.name, sequence)]
        draw(axes, subject.name, [(one.layer, one) for one in layers if one.epsilon == 0], number)
    axes.set_xlabel("layer")
    whole_numbers(axes.xaxis)


def by_epsilon(axes: Axes, results: ProbeResults, number: str) -> None:
    """A measure of the first layer against the perturbation, on logarithmic axes."""
    for subject in results.subjects:
        perturbed = [
            one for one in results.layers if one.subject == subject.name and one.layer == 0 and one.epsilon > 0
        ]
        draw(axes, subject.name, [(one.epsilon, one) for one in perturbed], number)
    axes.set_xscale("log")
    axes.set_xlabel("epsilon (noise, share of the embeddings' norm)")


def draw(axes: Axes, subject: str, points: list[tuple[float, Layer]], number: str) -> None:
    """One model's line."""
    color, marker, dashes = _LOOKS[subject]
    values = [max(measure(layer, number), _FLOOR) for _, layer in points]
    axes.plot([x for x, _ in points], values, color=color, marker=marker, linestyle=dashes, markersize=5, label=subject)
    axes.set_yscale("log")
