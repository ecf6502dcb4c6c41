"""Needles, LongBench and depths: tables, means and maps from the numbers that they are given."""

import re

import numpy as np
import pytest

from eval.results import SampleValues
from pipeline.report import depth, needles
from pipeline.report.claims import all_claims, summary
from pipeline.report.evaluation_plots import length_plot
from pipeline.report.measures import LONGBENCH, NEEDLES, measure
from pipeline.report.tables import longbench_table, needle_table
from pipeline.report.variants import LOOKS


def texts(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</(?:text|tspan)>", svg)


@pytest.fixture
def results(full):
    return full.results(full.recipe().evaluation)


def test_the_mean_is_over_rulers_tasks_alone(results) -> None:
    result = measure(results, NEEDLES)
    assert result.tasks == ("niah_single_1", "niah_multikey_2", "niah_multivalue") and result.factors == [2, 4]
    own = [s for s in results.scores if (s.variant, s.context_factor) == ("drope", 4) and s.task in result.tasks]
    score = result.scores["drope", 4]
    assert score.value == pytest.approx(np.mean([s.value for s in own])) and score.samples == 120
    assert score.stderr == pytest.approx(np.sqrt(sum(s.stderr**2 for s in own)) / 3)
    assert [len(part) for part in result.parts["drope", 4]] == [40, 40, 40]


def test_a_mean_is_only_of_all_its_tasks(results) -> None:
    fewer = [s for s in results.scores if (s.task, s.variant) != ("niah_multivalue", "yarn")]
    result = measure(results.model_copy(update={"scores": tuple(fewer)}), NEEDLES)
    assert "yarn" not in result.variants and "drope" in result.variants


def test_longbench_is_the_mean_of_the_tasks_in_percent(results) -> None:
    table = longbench_table(results)
    assert [heading for heading, _ in table.columns] == ["Average", "multifieldqa_en", "musique", "gov_report", "lcc"]
    assert table.columns[1][1] == "qa_f1, 40 items"
    (group,) = table.groups
    row = next(row for row in group.rows if row.variant == "drope")
    own = {s.task: s.value for s in results.scores if s.variant == "drope"}
    parts = [own[name] for name in ("multifieldqa_en", "musique", "gov_report", "lcc")]
    assert [cell.value for cell in row.cells] == [f"{100 * value:.1f}" for value in (np.mean(parts), *parts)]


def test_needles_by_task_have_a_group_for_every_length(results) -> None:
    table = needle_table(results)
    assert [group.heading for group in table.groups] == ["2x, 128 tokens", "4x, 256 tokens"]
    assert [column for column, _ in table.columns] == ["single 1", "multikey 2", "multivalue", "depth", "lost in"]
    best = [
        [[row.cells[column].value for row in g.rows if row.cells[column].best] for column in range(5)]
        for g in table.groups
    ]
    tops = [[max(row.cells[column].value for row in g.rows) for column in range(5)] for g in table.groups]
    assert [[set(cells) for cells in group] for group in best] == [[{top} for top in group] for group in tops]
    assert "Not part of RULER's mean: niah_depth, lost_in_the_middle." in table.notes
    assert len(table.csv.splitlines()) == 1 + 2 * 5 * len(results.config.variants)


def test_claims_on_needles_and_longbench_are_paired_within_tasks(results) -> None:
    """Samples are hard for all variants alike, so that the paired error is below that of the two means."""
    result = all_claims(results)
    claim = next(c for c in result[NEEDLES] if (c.ours.context_factor, c.rival.variant) == (4, "yarn"))
    assert claim.verdict == "better" and claim.interval[0] < claim.difference < claim.interval[1]
    assert claim.stderr < 0.9 * np.hypot(claim.ours.stderr, claim.rival.stderr)
    assert {c.ours.context_factor for c in result[LONGBENCH]} == {4}
    (percent,) = {c.number(c.ours.value) for c in result[LONGBENCH]}
    assert percent == f"{100 * result[LONGBENCH][0].ours.value:.1f}"
    sentences = [line for line in summary(result, results.chance) if "RULER" in line]
    assert len(sentences) == 1
    assert sentences[0].startswith("At 4x its context (256 tokens) DroPE with its softmax scale finds")


def test_alike_needles_fall_back_to_errors_of_shares(results) -> None:
    """Right in every sample against wrong in every sample: no draw differs, and still nothing is certain."""
    right = {"drope_scaled": 1.0, "yarn": 0.0}
    scores = [
        s.model_copy(update={"value": right[s.variant], "stderr": 0.0})
        if s.variant in right and s.metric == "string_match"
        else s
        for s in results.scores
    ]
    values = [
        v.model_copy(update={"values": (right[v.variant],) * 40})
        if v.variant in right and v.metric == "string_match"
        else v
        for v in results.values
    ]
    config = results.config.model_copy(update={"variants": ("yarn", "drope_scaled")})
    changed = results.model_copy(update={"scores": tuple(scores), "values": tuple(values), "config": config})
    only = [s for s in changed.scores if s.variant in right]
    claim = all_claims(changed.model_copy(update={"scores": tuple(only)}))[NEEDLES][0]
    assert claim.difference == 1.0 and claim.interval is None and claim.stderr > 0


def test_needle_plots_have_lengths_of_their_own(results) -> None:
    shown = texts(length_plot(results, NEEDLES, "needles").svg)
    assert "Needles against context length" in shown and "2x" in shown and "8x" not in shown
    panels = texts(needles.needle_plots(results, "tasks").svg)
    assert {"single 1", "multikey 2", "multivalue", "needles found (share)"} <= set(panels) and "depth" not in panels
    assert panels.count("DroPE scaled") == 1  # one legend for all panels


def test_swept_depths_are_taken_as_they_are(results) -> None:
    values = next(v for v in results.values if (v.task, v.variant, v.context_factor) == ("niah_depth", "yarn", 4))
    result = depth.by_depth(values)
    assert result.middles.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert result.edges.tolist() == pytest.approx([-0.125, 0.125, 0.375, 0.625, 0.875, 1.125])
    for place, middle in enumerate(result.middles):
        here = [v for v, d in zip(values.values, values.depths, strict=True) if d == middle]
        assert result.shares[place] == pytest.approx(np.mean(here))
        assert result.errors[place] == pytest.approx(np.std(here, ddof=1) / len(here) ** 0.5)


def test_depths_of_recall_are_put_into_tenths() -> None:
    place = {"variant": "drope", "task": "recall", "metric": "exact_match", "context_factor": 4}
    result = depth.by_depth(SampleValues(**place, values=(1, 0, 1, 1), depths=(0.0, 0.05, 0.31, 1.0)))
    assert result.middles == pytest.approx(np.arange(0.05, 1, 0.1)) and len(result.edges) == 11
    assert result.shares[[0, 3, 9]].tolist() == [0.5, 1.0, 1.0] and np.isnan(result.shares[[1, 2, 4, 8]]).all()
    assert result.errors[0] == pytest.approx(0.5) and np.isnan(result.errors[3])


def test_the_map_shows_every_variant_length_and_share(results) -> None:
    svg = depth.depth_map(results, "depth").svg
    shown = texts(svg)
    assert {"RoPE", "YaRN", "DroPE", "Control", "DroPE scaled", "2x", "4x", "share found"} <= set(shown)
    cells = [values for values in results.values if values.task == "niah_depth"]
    expected = sorted(f"{100 * share:.0f}" for values in cells for share in depth.by_depth(values).shares)
    assert sorted(text for text in shown if re.fullmatch(r"\d+", text)) == expected
    assert "<image" not in svg  # a page without images: cells and colour bar are drawn


def test_without_the_tasks_recall_stands_for_them(run) -> None:
    results = run.results(run.recipe().evaluation)
    assert depth.depth_map(results, "depth") is None and depth.middle_plot(results, "middle") is None
    values = [
        SampleValues(
            variant=variant,
            task="recall",
            metric="exact_match",
            context_factor=factor,
            values=(1.0, 0.0) * 20,
            depths=tuple(np.linspace(0, 1, 40)),
        )
        for variant in results.config.variants
        for factor in (1, 2)
    ]
    results = results.model_copy(update={"values": tuple(values)})
    assert depth.depth_task(results, "niah_depth") == depth.depth_task(results, "lost_in_the_middle") == "recall"
    assert texts(depth.depth_map(results, "depth").svg).count("50") == 2 * 10 * len(results.config.variants)
    assert "By the position of the fact at 2x" in texts(depth.middle_plot(results, "middle").svg)


def test_the_middle_curve_goes_through_the_shares(results) -> None:
    svg = depth.middle_plot(results, "middle").svg
    assert "By the position of the fact at 4x" in texts(svg)
    values = next(
        v for v in results.values if (v.task, v.variant, v.context_factor) == ("lost_in_the_middle", "drope", 4)
    )
    shares = depth.by_depth(values).shares
    color = LOOKS["drope"].color
    path = re.search(rf'<path d="M ([^"]*?)"[^>]*stroke: {color}; stroke-width: 3.2', svg.replace("\n", " "))
    heights = [float(pair.split()[1]) for pair in path.group(1).split(" L ")]
    assert np.corrcoef(heights, shares)[0, 1] == pytest.approx(-1, abs=1e-4)


def test_depths_alone_have_no_mean(full) -> None:
    full.needles = False
    config = full.recipe().evaluation
    only = {"niah": {"tasks": ("niah_depth",), "samples": 40, "context_factors": (2, 4), "depths": 5}}
    results = full.results(config.model_validate(config.model_dump() | only))
    assert measure(results, NEEDLES).scores == {} and all_claims(results)[NEEDLES] == []
    assert length_plot(results, NEEDLES, "needles") is None and needles.needle_plots(results, "tasks") is None
    assert [column for column, _ in needle_table(results).columns] == ["depth"]
    assert depth.depth_map(results, "depth") is not None
