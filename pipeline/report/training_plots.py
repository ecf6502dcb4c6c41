"""The plots of the training, from the lines that it wrote while it ran."""

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from pipeline.report.figures import (
    Drawing,
    draw_line,
    label_positions,
    new_figure,
    render,
    styled,
    whole_numbers,
)
from pipeline.report.inputs import Metrics, Positions
from pipeline.report.variants import LOOKS, Look

_MOST_POINTS = 400
"""Points of a training curve; a longer one is averaged, so that a page stays small after 100,000 steps."""
_TRAININGS = {"recalibration": LOOKS["drope"], "control": LOOKS["control"]}
_GREY = "#777777"


@styled
def recalibration_plot(
    metrics: dict[str, Metrics], source_loss: float | None, dropped_after: int | None, name: str
) -> Drawing | None:
    """Training and validation loss of DroPE against tokens, the control's validation loss, the source's loss at 1x.

    `dropped_after`: the last step with RoPE, where the run dropped it on its way.
    """
    lines = metrics.get("recalibration")
    if not lines:
        return None
    figure, axes = new_figure("Recalibration")
    drope = LOOKS["drope"]
    tokens, losses, averaged = thin(points(lines, "loss"))
    label = f"DroPE, training{mean_of(averaged)}"
    axes.plot(tokens, losses, color=drope.color, alpha=0.45, linewidth=1, label=label)
    for stage, look in _TRAININGS.items():
        if measured := points(metrics.get(stage, []), "validation_loss"):
            x, y = zip(*measured, strict=True)
            draw_line(axes, x, y, replace(look, label=f"{look.label}, validation"))
    if source_loss is not None:
        rope = LOOKS["rope"]
        axes.axhline(source_loss, color=rope.color, linestyle=":", linewidth=1.6, label="RoPE source at 1x")
    mark_skipped(axes, lines)
    mark_drop(axes, lines, dropped_after)
    label_tokens(axes, lines)
    axes.set_ylabel("loss (nats per token)")
    return render(figure, name)


@styled
def lengths_plot(metrics: dict[str, Metrics], quantity: str, dropped_after: int | None, name: str) -> Drawing | None:
    """Validation loss or recall ("validation_loss", "recall") against tokens, a line for every length.

    None where it was measured at no length beyond that of the training (loss), or at none at all (recall).
    """
    lines = metrics.get("recalibration", [])
    keys = {factor: key_of(quantity, factor) for factor in factors(lines, quantity)}
    if not keys or (quantity == "validation_loss" and list(keys) == [1]):
        return None
    recall = quantity == "recall"
    figure, axes = new_figure("Recall probe during training" if recall else "Validation loss by length")
    for place, (factor, key) in enumerate(keys.items()):
        for stage, look in _TRAININGS.items():
            if measured := points(metrics.get(stage, []), key):
                x, y = zip(*measured, strict=True)
                color = lightened(look, (place + 1) / len(keys))
                label = f"{look.label} {factor}x"
                draw_line(axes, x, y, replace(look, label=label, color=color), thinned=0.6)
    mark_drop(axes, lines, dropped_after)
    label_tokens(axes, lines)
    axes.set_ylabel("repeated tokens recalled (share)" if recall else "loss (nats per token)")
    if recall:
        axes.set_ylim(-0.03, 1.04)
    return render(figure, name)


@styled
def final_position_plot(positions: dict[str, Positions], training_length: int, name: str) -> Drawing | None:
    """Loss along the position at the longest validated length, when the training was over."""
    if not positions:
        return None
    longest = max(part_losses.length for part_losses in positions.values())
    figure, axes = new_figure(f"Validation loss along the position at {longest // training_length}x")
    for stage, look in _TRAININGS.items():
        part_losses = positions.get(stage)
        if part_losses is not None and part_losses.length == longest:
            parts = len(part_losses.losses)
            middles = [(place + 0.5) * longest / parts for place in range(parts)]
            draw_line(axes, middles, as_floats(part_losses.losses), look)
    label_positions(axes, longest, training_length)
    return render(figure, name)


@styled
def optimization_plot(lines: Metrics, gradient_clip: float, name: str) -> Drawing | None:
    """Gradient norm before clipping (left, logarithmic) and learning rate (right) against tokens."""
    norms, rates = points(lines, "grad_norm"), points(lines, "lr")
    if not norms or not rates:
        return None
    figure, axes = new_figure("Gradient norm and learning rate")
    tokens, values, averaged = thin(norms)
    label = f"Gradient norm{mean_of(averaged)}"
    axes.plot(tokens, values, color=LOOKS["drope"].color, linewidth=1, label=label)
    axes.axhline(gradient_clip, color=_GREY, linestyle=":", linewidth=1.4, label="Clipped above")
    axes.set_yscale("log")
    axes.set_ylabel("global gradient norm")
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    right.grid(visible=False)
    tokens, values, _ = thin(rates)
    right.plot(tokens, values, color=LOOKS["yarn"].color, linewidth=1.4, linestyle="--", label="Learning rate")
    right.set_ylim(bottom=0)
    right.set_ylabel("learning rate")
    mark_skipped(axes, lines)
    label_tokens(axes, lines)
    return render(figure, name)


def points(lines: Metrics, name: str) -> list[tuple[float, float]]:
    """Tokens and a number, where it was measured and finite, of updates that were made; step 0 has no tokens yet."""
    return [
        (line.get("tokens", 0), line[name])
        for line in lines
        if line.get(name) is not None and not ("skipped" in line and name in ("loss", "grad_norm"))
    ]


def thin(curve: list[tuple[float, float]]) -> tuple[list[float], list[float], int]:
    """At most 400 points, each the mean of as many neighbours; also how many that were."""
    size = max(1, -(-len(curve) // _MOST_POINTS))
    groups = [np.mean(curve[start : start + size], axis=0) for start in range(0, len(curve), size)]
    return [float(x) for x, _ in groups], [float(y) for _, y in groups], size


def mean_of(averaged: int) -> str:
    """What a label adds where each point is the mean of several steps."""
    return f" ({averaged}-step mean)" if averaged > 1 else ""


def key_of(quantity: str, factor: int) -> str:
    """The name in metrics.jsonl of a quantity at a multiple of the training length."""
    return quantity if (quantity, factor) == ("validation_loss", 1) else f"{quantity}_{factor}x"


def factors(lines: Metrics, quantity: str) -> list[int]:
    """The multiples of the training length at which a quantity was measured, in order."""
    names = {name for line in lines for name in line}
    longer = [name.removeprefix(f"{quantity}_")[:-1] for name in names if name.startswith(f"{quantity}_")]
    return sorted([*map(int, longer), *([1] if quantity in names else [])])


def lightened(look: Look, share: float) -> str:
    """The look's colour for a share of 1, whiter for less: longer rows are drawn darker."""
    red, green, blue = (1 - (1 - value) * (0.35 + 0.65 * share) for value in to_rgb(look.color))
    return to_hex((red, green, blue))


def as_floats(values: tuple[float | None, ...]) -> list[float]:
    """Gaps where there is no number."""
    return [float("nan") if value is None else value for value in values]


def mark_skipped(axes: Axes, lines: Metrics) -> None:
    """Marks at the bottom for updates that were skipped."""
    if skipped := [line["tokens"] for line in lines if "skipped" in line]:
        axes.plot(
            skipped,
            [0.015] * len(skipped),
            "|",
            color="#000000",
            markersize=8,
            label="Update skipped",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )


def mark_drop(axes: Axes, lines: Metrics, dropped_after: int | None) -> None:
    """A line after the last step with RoPE, where the run dropped it on its way."""
    for tokens in (line["tokens"] for line in lines if line["step"] == dropped_after):
        axes.axvline(tokens, color=_GREY, linestyle="-.", linewidth=1.4, label="RoPE dropped")


def label_tokens(axes: Axes, lines: Metrics) -> None:
    """Token counts with their unit in the axis' label, so that ticks stay short; the steps stand at the top."""
    last = max(lines, key=lambda line: line.get("tokens", 0))
    most = last.get("tokens", 0)
    unit, word = next(
        ((u, w) for u, w in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")) if most >= u), (1, "")
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}")
    axes.set_xlabel(f"training tokens{f' ({word})' if word else ''}")
    if most:
        per_step = most / last["step"]
        steps = axes.secondary_xaxis("top", functions=(lambda x: x / per_step, lambda x: x * per_step))
        steps.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        whole_numbers(steps.xaxis)
        steps.tick_params(labelsize=8, colors=_GREY, length=2)
        steps.set_xlabel("steps", fontsize=8, color=_GREY)
