"""The picture: loss against step without and with QK-norm, with marks where the guard acted."""

from dataclasses import dataclass
from statistics import mean
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.figures import render

_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "drope", "axes.spines.top": False, "axes.spines.right": False}
_STYLE |= {"legend.frameon": False, "legend.fontsize": 9}
_GUARD_OFF, _GUARD_ON, _SKIP, _BACK = "#9a9a9a", "#1f6fb4", "#d1495b", "#222222"
_MEAN_OF = 20
"""Steps whose mean counts as the loss of a moment."""


@dataclass(frozen=True)
class Run:
    """One training: the lines of its metrics.jsonl and events.jsonl."""

    qk_norm: str
    guarded: bool
    lines: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Step and loss of every update that was made and not gone back on."""
        result = [line for line in self.lines if line.get("loss") is not None and "skipped" not in line]
        return [(line["step"], line["loss"]) for line in result]

    @property
    def lowest(self) -> float:
        return min(self._means())

    @property
    def last(self) -> float:
        return self._means()[-1]

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def _means(self) -> list[float]:
        values = [loss for _, loss in self.losses]
        return [mean(values[end - _MEAN_OF : end]) for end in range(_MEAN_OF, len(values) + 1)]


def draw(runs: list[Run]) -> str:
    """SVG text with two plots side by side."""
    with matplotlib.style.context(("default", _STYLE)):
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for place, (qk_norm, title) in enumerate((("none", "Without QK-norm"), ("full", "With QK-norm"))):
            axes[place].set_title(title, loc="left", fontweight="bold", fontsize=11)
            axes[place].set_xlabel("step")
            for run in (run for run in runs if run.qk_norm == qk_norm):
                draw_loss(axes[place], run, labelled=place == 0)
        # Once both axes have their common height.
        for place, qk_norm in enumerate(("none", "full")):
            for run in (run for run in runs if run.qk_norm == qk_norm):
                draw_returns(axes[place], run)
        axes[0].plot([], [], color=_BACK, marker="$\\leftarrow$", linestyle="", markersize=11, label="gone back")
        axes[0].set_ylabel("training loss (nats per token)")
        return render(figure, "guard")


def draw_loss(axes: Axes, run: Run, *, labelled: bool) -> None:
    """A curve, and a cross at every update that was skipped, also on a way that was gone back on."""
    color = _GUARD_ON if run.guarded else _GUARD_OFF
    label = f"guard {'on' if run.guarded else 'off'}" if labelled else None
    axes.plot(*zip(*run.losses, strict=True), color=color, linewidth=1.3, label=label, zorder=2 + run.guarded)
    skips = [(event["step"], event["loss"]) for event in run.events_of("skip") if event["loss"] is not None]
    if skips:
        label = "update skipped" if labelled else None
        axes.scatter(*zip(*skips, strict=True), marker="x", s=14, color=_SKIP, linewidth=1, label=label, zorder=4)


def draw_returns(axes: Axes, run: Run) -> None:
    """An arrow for every return, from above to below, and what the learning rate is multiplied with after it."""
    bottom, top = axes.get_ylim()
    arrow = {"arrowstyle": "->", "color": _BACK, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    for number, event in enumerate(run.events_of("rollback")):
        height = bottom + (0.97 - 0.045 * number) * (top - bottom)
        axes.annotate("", xy=(event["to_step"], height), xytext=(event["step"], height), arrowprops=arrow)
        text = f"lr × {event['lr_scale']:g}"
        axes.annotate(text, (event["step"], height), (4, 0), textcoords="offset points", va="center", fontsize=8)
