"""The tuned softmax scales as one picture: loss against beta at every length, and beta against ln s with its line."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from eval.tuning.softmax_scale import ScaleResults
from pipeline.report.figures import Drawing, render, styled

_LINE = "#d55e00"
_MEANING = {"needles": "loss of needle answers (nats per token)", "text": "loss on held-out text (nats per token)"}


@styled
def scale_plot(results: ScaleResults, name: str = "scale") -> Drawing:
    """Two plots side by side."""
    figure = Figure(figsize=(9.6, 4.2))
    losses, betas = figure.subplots(1, 2)
    draw_losses(losses, results)
    draw_betas(betas, results)
    return render(figure, name)


def draw_losses(axes: Axes, results: ScaleResults) -> None:
    """A line per length, a star at its least loss."""
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(results.lengths)))
    for one, color in zip(results.lengths, colors, strict=True):
        x, y = [point.beta for point in one.points], [point.loss for point in one.points]
        axes.plot(x, y, color=color, marker="o", markersize=3.5, label=f"{one.factor}x ({one.length:,} tokens)")
        axes.plot(one.beta, one.loss_tuned, color=color, marker="*", markersize=13, linestyle="")
    axes.axvline(1.0, color="#777777", linestyle=":", linewidth=1.4)
    axes.set_title("Loss against the softmax scale")
    axes.set_xlabel("beta (factor of the attention logits)")
    axes.set_ylabel(_MEANING[results.judged_by])


def draw_betas(axes: Axes, results: ScaleResults) -> None:
    """The best beta of every length with its standard error, and 1 + c ln s."""
    factors = [one.factor for one in results.lengths]
    betas = [one.beta for one in results.lengths]
    errors = [one.beta_error or 0.0 for one in results.lengths]
    axes.errorbar(factors, betas, yerr=errors, color="#4d4d4d", marker="*", markersize=11, linestyle="", label="best")
    ends = np.array([1.0, factors[-1]])
    axes.plot(ends, 1 + results.c * np.log(ends), color=_LINE, label=f"1 + {results.c:.3g} ln s")
    axes.set_xscale("log")
    axes.set_xticks([1, *factors], [f"{factor}x" for factor in (1, *factors)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("Best scale against length")
    axes.set_xlabel("s: length over training length (logarithmic)")
    axes.set_ylabel("beta")
