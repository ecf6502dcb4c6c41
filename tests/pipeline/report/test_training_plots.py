"""Plots of the training, from the lines that it wrote."""

import re

import pytest

from pipeline.report import training_plots as plots
from pipeline.report.inputs import Positions, read_run
from pipeline.report.variants import LOOKS
from pipeline.stages.order import REPORT


def texts(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</(?:text|tspan)>", svg)


def test_a_long_training_is_averaged_without_losing_its_mean() -> None:
    points = [(float(step), step % 7 + 0.5) for step in range(1, 120_001)]
    tokens, losses, averaged = plots.thin(points)
    assert (len(tokens), averaged) == (400, 300)
    assert sum(losses) / 400 == pytest.approx(sum(loss for _, loss in points) / 120_000)
    assert tokens[0] == 150.5
    assert plots.thin(points[:400]) == ([x for x, _ in points[:400]], [y for _, y in points[:400]], 1)


def test_points_are_of_updates_that_were_made_and_of_finite_numbers() -> None:
    """The validation before the first step is at no tokens."""
    lines = [
        {"step": 0, "validation_loss": 4.5},
        {"step": 1, "loss": 4.0, "tokens": 512, "attention_logit_max": [3.0, 4.0]},
        {"step": 2, "loss": 95.0, "tokens": 1024, "skipped": "spike", "validation_loss": None},
        {"step": 3, "loss": None, "tokens": 1536, "skipped": "not finite"},
        {"step": 4, "loss": 3.0, "tokens": 2048, "validation_loss": 3.5},
    ]
    assert plots.points(lines, "loss") == [(512, 4.0), (2048, 3.0)]
    assert plots.points(lines, "validation_loss") == [(0, 4.5), (2048, 3.5)]


def test_lengths_are_found_by_their_names() -> None:
    lines = [{"step": 0, "validation_loss": 1.0, "validation_loss_16x": 2.0, "validation_loss_2x": 3.0}, {"loss": 1.0}]
    assert plots.factors(lines, "validation_loss") == [1, 2, 16]
    assert plots.factors(lines, "recall") == []
    assert plots.factors([{"recall_4x": 0.5, "recall_1x": 0.5}], "recall") == [1, 4]
    assert [plots.key_of("validation_loss", n) for n in (1, 2)] == ["validation_loss", "validation_loss_2x"]
    assert plots.key_of("recall", 1) == "recall_1x"


def test_every_length_of_both_trainings_is_drawn(full) -> None:
    data = read_run(full.build(), full.folder, REPORT.reported)
    loss, recall = (plots.lengths_plot(data.metrics, name, 30, name).svg for name in ("validation_loss", "recall"))
    for svg in (loss, recall):
        shown = texts(svg)
        assert {f"{name} {factor}x" for name in ("DroPE", "Control") for factor in (1, 2, 4)} <= set(shown)
        assert "RoPE dropped" in shown
        assert LOOKS["drope"].color in svg and plots.lightened(LOOKS["drope"], 1 / 3) in svg
    assert len({plots.lightened(LOOKS["drope"], share) for share in (1 / 3, 2 / 3, 1)}) == 3


def test_skipped_updates_are_marked_and_do_not_stretch_the_plot(full) -> None:
    data = read_run(full.build(), full.folder, REPORT.reported)
    lines = data.metrics["recalibration"]
    assert [line["loss"] for line in lines[20:22]] == [None, 95.0]
    for drawn in (plots.recalibration_plot(data.metrics, 2.0, None, "r"), plots.optimization_plot(lines, 1.0, "o")):
        shown = texts(drawn.svg)
        assert "Update skipped" in shown
        numbers = [float(text) for text in shown if re.fullmatch(r"[\d.]+", text)]
        assert 1 < max(numbers) < 80  # thousands of tokens go to 30, steps to 60; the loss that was skipped is 95


def test_steps_stand_above_the_tokens(full) -> None:
    """60 steps of 512 tokens: 20 steps stand where 10.24 thousand tokens would."""
    data = read_run(full.build(), full.folder, REPORT.reported)
    svg = plots.recalibration_plot(data.metrics, 2.0, None, "r").svg
    assert {"steps", "training tokens (thousands)", "RoPE source at 1x", "Control, validation"} <= set(texts(svg))
    result = re.findall(r'<text style="font-size: (\d+)px[^"]*" x="([\d.]+)"[^>]*>([^<]+)</text>', svg)
    place = {(size, text): float(x) for size, x, text in result if text in ("0", "10", "20")}
    tokens, steps = (place["10", "10"] - place["10", "0"], place["8", "20"] - place["8", "0"])
    assert steps / tokens == pytest.approx(10.24 / 10, rel=1e-3)


def test_gaps_along_the_position_stay_gaps() -> None:
    positions = {"recalibration": Positions(64, (3.0, 2.0, None, 1.0)), "control": Positions(32, (9.0, 9.0, 9.0, 9.0))}
    svg = plots.final_position_plot(positions, 32, "p").svg
    path = re.search(rf'<path d="([^"]*)"[^>]*stroke: {LOOKS["drope"].color}', svg.replace("\n", " "))
    assert path is not None and (path.group(1).count("M"), path.group(1).count("L")) == (2, 1)
    assert "Control" not in texts(svg)  # its rows are of another length


def test_nothing_to_draw(run) -> None:
    assert plots.recalibration_plot({}, 2.0, None, "recalibration") is None
    assert plots.optimization_plot([], 1.0, "optimization") is None
    assert plots.final_position_plot({}, 32, "position") is None
    data = read_run(run.build(), run.folder, REPORT.reported)  # validated at the training length alone, without recall
    assert plots.lengths_plot(data.metrics, "validation_loss", None, "loss") is None
    assert plots.lengths_plot(data.metrics, "recall", None, "recall") is None
