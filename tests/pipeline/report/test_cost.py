"""What an evaluation took, from the seconds that its units recorded."""

import csv

import pytest

from eval.units import plan_units
from pipeline.report.cost import cost_table, unit_costs


def test_every_unit_is_counted_once(full) -> None:
    results = full.results(full.recipe().evaluation)
    costs = unit_costs(results)
    assert set(costs) == set(plan_units(results.config))
    table = cost_table(results)
    assert table.families == ("loss", "recall", "niah", "longbench", "harness")
    rows = dict(table.rows)
    together = dict(zip(table.families, rows["Together"], strict=True))
    # seven variants; at 1x PI, NTK and YaRN are RoPE, and DroPE scaled is DroPE
    assert together["loss"].units == 7 * 4 - 4 and together["loss"].seconds == 0.5 * 24
    assert together["niah"].units == 7 * 5 * 2 and together["niah"].seconds == pytest.approx(0.25 * 70)
    assert together["harness"].units == 3 * 2 and together["harness"].seconds == 0.5 * 6  # two metrics, one scoring
    yarn = dict(zip(table.families, rows["YaRN"], strict=True))
    assert yarn["harness"] is None and yarn["loss"].units == 3
    assert yarn["recall"].detail == "3 units of 0.5 s, 400 samples/s"
    lines = list(csv.DictReader(table.csv.splitlines()))
    assert sum(float(line["seconds"]) for line in lines) == pytest.approx(sum(c.seconds for c in costs.values()))


def test_it_is_folded_in_the_page(reported) -> None:
    page = (reported.folder / "report" / "report.html").read_text(encoding="utf-8")
    folded = page[page.index("What the evaluation took") :]
    assert page[: page.index("What the evaluation took")].rstrip().endswith("<summary>")
    assert folded.index('id="cost"') < folded.index("</details>")
