"""Published numbers beside the run's, and what is wrong with a file of them."""

import csv
from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.report.published import model_name, published_rows, published_table, read_published
from pipeline.stages.order import STAGES

HEADER = "model,source,variant,task,context_factor,value"


def test_the_models_rows_stand_by_source_beside_the_runs_numbers(full) -> None:
    recipe = full.build()
    table = published_table(recipe, full.results(recipe.evaluation))
    assert list(table.groups) == ["a paper", "a blog"]
    shown = [(r.label, r.place, r.theirs, r.ours, r.difference) for rows in table.groups.values() for r in rows]
    assert shown == [
        ("DroPE", "recall at 4x", "0.750", "0.810", "+0.060"),
        ("YaRN", "recall at 2x", "0.500", "0.400", "−0.100"),
        ("RoPE", "loss at 1x", "2.200", "2.104", "−0.096"),
        ("RoPE", "hotpotqa at 4x", "0.300", "–", "–"),
    ]
    lines = list(csv.DictReader(table.csv.splitlines()))
    assert float(lines[0]["difference"]) == pytest.approx(0.06) and lines[3]["run"] == ""


def test_means_and_metrics_may_be_published(full) -> None:
    full.published = (
        HEADER
        + ",metric\n"
        + "".join(
            f"facts-600k,a paper,drope,{task},{factor},0.5,{metric}\n"
            for task, factor, metric in (("needles", 4, ""), ("longbench", 4, ""), ("arc_easy", 1, "acc_norm"))
        )
    )
    recipe = full.build()
    results = full.results(recipe.evaluation)
    (rows,) = published_table(recipe, results).groups.values()
    assert all(row.run is not None for row in rows)
    scores = {s.metric: s.value for s in results.scores if (s.task, s.variant) == ("arc_easy", "drope")}
    assert rows[2].run == scores["acc_norm"] and rows[2].place == "arc_easy (acc_norm) at 1x"


def test_the_page_and_its_lineage_show_them(reported) -> None:
    page = (reported.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "Beside published numbers" in page and "no claim is made" in page
    assert "other-1B" not in page
    report = next(stage for stage in STAGES if stage.name == "report")
    recipe = reported.recipe()
    before = report.sources(recipe)["published"]
    recipe.report.published.write_text(HEADER + "\n", encoding="utf-8")
    changed = report.sources(recipe)["published"]
    recipe.report.published.write_text(reported.published, encoding="utf-8")
    assert changed != before == report.sources(recipe)["published"]


@pytest.mark.parametrize(
    ("lines", "line", "problem"),
    [
        ("model,source,variant,task,value", 1, "no column context_factor"),
        (HEADER + ",place", 1, "unknown column place"),
        ("", 1, "no column model"),
        (HEADER + "\nm,s,drope,recall,4", 2, "5 values for 6 columns"),
        (HEADER + "\nm,s,yarm,recall,4,0.5", 2, "unknown variant 'yarm'; did you mean yarn?"),
        (HEADER + "\nm,s,yarn,recall,4,0.5\n\nm,s,yarn,recall,half,0.5", 4, "context_factor 'half'"),
        (HEADER + "\nm,s,yarn,recall,0,0.5", 2, "context_factor '0'"),
        (HEADER + "\nm,s,yarn,recall,4,many", 2, "value 'many' is not a number"),
        (HEADER + "\nm,s,yarn,recall,4,nan", 2, "value 'nan' is not a number"),
        (HEADER + "\nm,s,yarn,recall,4,38.2", 2, "38.2 of recall is not a share from 0 to 1; divide percent by 100"),
        (HEADER + "\nm,,yarn,recall,4,0.5", 2, "source is empty"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, lines: str, line: int, problem: str) -> None:
    path = tmp_path / "published.csv"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_published(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ") and problem in message and "\n" not in message


def test_a_loss_may_be_above_one_and_a_file_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    with pytest.raises(RecipeError, match="cannot read it: No such file"):
        read_published(path)
    path.write_text(HEADER + "\nm,s,rope,loss,1,2.9\n", encoding="utf-8")
    assert read_published(path)[0].value == 2.9


def test_a_file_without_the_runs_model_is_refused(full) -> None:
    full.report = {"published_model": "facts-60k"}
    with pytest.raises(RecipeError, match=r"no row for model 'facts-60k'; did you mean facts-600\w\?; set report.pub"):
        published_rows(full.build())
    assert model_name(full.recipe()) == "facts-60k"
    assert published_rows(full.recipe().model_copy(update={"report": type(full.recipe().report)()})) == []
