"""The page as a reader and as a browser see it."""

import csv
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from eval.results import Results
from pipeline.report.page import FILES, write_report
from pipeline.report.page_plots import EVALUATION, TRAINING
from pipeline.stages.order import REPORT

ENDS = ("svg", "png")
_VOID = {"meta", "br", "hr", "img", "link", "input", "base", "embed", "source"}


@dataclass
class Page(HTMLParser):
    """Tags with their attributes, texts with their innermost tag, and tables by id (small is marked |, bold *)."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.table: list[list[str]] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag not in _VOID:
            self.stack.append(tag)
        if tag == "table":
            self.table = self.tables.setdefault(attributes["id"], [])
        elif tag == "tr" and self.table is not None:
            self.table.append([])
        elif tag in ("td", "th") and self.table:
            self.table[-1].append("")
        elif tag in ("small", "b") and self.table and self.table[-1]:
            self.table[-1][-1] += "|" if tag == "small" else "*"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag
        if tag == "table":
            self.table = None

    def handle_data(self, data: str) -> None:
        self.texts.append((self.stack[-1] if self.stack else "", data))
        if self.table and self.table[-1] and data.strip():
            self.table[-1][-1] += " ".join(data.split())

    def text(self, tag: str) -> str:
        return "".join(text for where, text in self.texts if where == tag)


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.stack == []
    return page


@pytest.fixture
def shown(reported) -> tuple[Path, Page]:
    """Folder and page of the report of a run with everything."""
    return reported.folder / "report", read(reported.folder / "report" / "report.html")


def report(run) -> tuple[Path, Page]:
    path = write_report(run.build(), run.folder, run.folder / "report", REPORT.reported)
    assert path == run.folder / "report" / "report.html"
    return path.parent, read(path)


def test_the_page_needs_nothing_but_itself(shown) -> None:
    folder, page = shown
    forbidden = {"script", "link", "img", "iframe", "object", "embed", "base", "image", "form"}
    assert not forbidden & {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links, references = [], []
    for _, attributes in page.tags:
        assert not {
            name for name in attributes if name in ("src", "srcset", "action", "poster") or name.startswith("on")
        }
        links += [value for name, value in attributes.items() if name.endswith("href")]
        references += [result for value in attributes.values() for result in re.findall(r"url\(([^)]*)\)", value)]
    references += [link for link in links if link.startswith("#")]
    assert len(references) > 100 and {reference.removeprefix("#") for reference in references} <= set(ids)
    assert {link for link in links if not link.startswith("#")} == set(FILES)
    assert all((folder / name).is_file() for name in FILES)
    styles = page.text("style")
    assert "@import" not in styles and "url(" not in styles and "@font-face" not in styles
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_plots_are_in_the_page_with_axes_and_units(shown) -> None:
    _, page = shown
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == len(EVALUATION) + len(TRAINING) == 12
    assert all(a["aria-label"] and a["viewbox"] and "width" not in a and "height" not in a for a in drawings)
    text = page.text("text") + page.text("tspan")
    for words in (
        *("Recall against context length", "facts recalled (share)", "Loss against context length", "4x", "256"),
        *("loss (nats per token)", "context length (times the training length; tokens)", "Chance", "Training length"),
        *("Recalibration", "training tokens (thousands)", "Control, validation", "RoPE source at 1x"),
        *("Loss along the position at 8x", "position in rows of 512 tokens", "YaRN", "DroPE scaled"),
        *("Validation loss by length", "Control 4x", "Validation loss along the position at 4x"),
        *("position in rows of 256 tokens", "Recall probe during training", "repeated tokens recalled (share)"),
        *("training tokens (thousands)", "steps", "Needles against context length", "needles found (share)"),
        *("By the position of the fact at 4x", "multikey 2", "depth of the needle (0%: at the start)", "share found"),
        *("Gradient norm and learning rate", "global gradient norm", "Clipped above", "Update skipped"),
    ):
        assert words in text


@pytest.mark.parametrize("task", ["recall", "loss"])
def test_tables_hold_the_results(shown, reported, task: str) -> None:
    folder, page = shown
    results = Results.load(reported.folder / "evaluation")
    scores = {(s.variant, s.context_factor): s for s in results.scores if s.task == task}
    heading, *rows = page.tables[f"{task}_by_length"]
    assert heading == ["Variant", "1x|64 tokens", "2x|128 tokens", "4x|256 tokens", "8x|512 tokens"]
    order = ["rope", "pi", "ntk", "yarn", "control", "drope", "drope_scaled"]
    cells = [row[1:] for row in rows]
    for variant, row in zip(order, cells, strict=True):
        expected = [scores[variant, factor] for factor in results.config.context_factors]
        assert [cell.lstrip("*") for cell in row] == [f"{s.value:.3f}|± {s.stderr:.3f}" for s in expected]
    bold = [(order[y], x) for y, row in enumerate(cells) for x, cell in enumerate(row) if cell.startswith("*")]
    assert sorted(bold, key=lambda place: place[1]) == [("control", 0), *(("drope_scaled", x) for x in (1, 2, 3))]
    lines = list(csv.DictReader((folder / f"{task}_by_length.csv").open()))
    assert {(line["variant"], int(line["context_factor"])): float(line["value"]) for line in lines} == {
        place: score.value for place, score in scores.items()
    }


def test_harness_table_leaves_out_what_changes_nothing_at_1x(shown) -> None:
    _, page = shown
    heading, *rows = page.tables["tasks"]
    assert heading == [
        "Variant",
        "arc_easy|acc, 150 items",
        "arc_easy|acc_norm, 150 items",
        "winogrande|acc, 150 items",
    ]
    assert [row[0] for row in rows] == ["RoPE", "Control", "DroPE"]
    assert rows[1][1].startswith("*0.388|±")
    assert "At the training length PI, NTK, YaRN, DroPE scaled change nothing." in page.text("p")


def test_comparison_verification_lineage_and_numbers(shown, reported) -> None:
    folder, page = shown
    rows: dict[tuple[str, str], list[str]] = {}
    for row in page.tables["comparison"]:
        if len(row) == 4:
            rows.setdefault((row[0], row[1]), row[2:])  # recall comes first
    assert [row[0] for row in page.tables["comparison"] if len(row) == 1] == [
        "Recall (share of facts)",
        "Needles (share found, mean of 3 RULER tasks)",
        "LongBench (percent, mean of 4 tasks)",
        "Loss (nats per token)",
    ]
    assert "compared in pairs by a bootstrap" in " ".join(page.text("p").split())
    assert rows["4x", "0.83"] == ["0.40YaRN|better,+0.43 ± 0.04", "0.08|better,+0.75 ± 0.03"]
    assert rows["1x", "0.95"][0] == "0.97RoPE|within the noise,−0.02 ± 0.02"
    assert len(list(csv.DictReader((folder / "comparison.csv").open()))) == 16 + 4 + 2
    assert [row[1:] for row in page.tables["verification"][1:]] == [
        ["3.1e-06", "1.2e-04", "passed"],
        ["2.4e-06", "1.2e-04", "passed"],
        ["1.7e-07", "1.0e-04", "passed"],
        ["1.7e-07", "1.0e-04", "passed"],
    ]
    words = page.text("dd")
    trained = "30,720 tokens in 60 steps on 2 processes, 2 updates skipped, went back once"
    for number in ("655,872", trained, "facts-600k", "recalibration 2 min 20 s"):
        assert number in words
    assert [t for where, t in page.texts if where == "b" and t.isalpha()] == [
        *("data", "surgery", "recalibration", "control", "export", "evaluation")
    ]
    versions = dict(page.tables["versions"])
    assert dict(csv.reader((folder / "versions.csv").open())) == {"name": "value"} | versions
    assert versions["torch"] == "2.13.0"
    assert versions["host"] == "node0 (data, surgery, recalibration, control); node1 (export, evaluation)"
    assert page.text("h1") == "DroPE on facts"
    assert page.text("pre") == (reported.folder / "recipe.yaml").read_text(encoding="utf-8")


def test_what_a_recipe_says_stays_text(run) -> None:
    title, notes = '<script>alert(1)</script> & "x" {{ 7 * 7 }}', "</p><img src=x onerror=alert(2)><!-- <style>"
    run.report = {"title": title, "notes": notes}
    _, page = report(run)
    assert page.text("h1") == title
    assert page.text("title") == title
    assert notes in page.text("p")
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text("pre") == (run.folder / "recipe.yaml").read_text(encoding="utf-8")


def test_absent_parts_leave_no_trace(run) -> None:
    run.recall = run.curves = False
    folder, page = report(run)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("comparison.csv", "cost.csv", "loss_by_length.csv", "loss_by_length.png", "loss_by_length.svg"),
        *("optimization.png", "optimization.svg", "recalibration.png", "recalibration.svg", "report.html"),
        *("validation_by_position.png", "validation_by_position.svg", "verification.csv"),
        "versions.csv",
    ]
    assert set(page.tables) == {"comparison", "loss_by_length", "verification", "versions", "cost"}
    everything = "".join(text for where, text in page.texts if where not in ("style", "pre"))
    assert not re.search(
        r"recall|control|harness|needle|longbench|published|None|nan|undefined", everything, re.IGNORECASE
    )


def test_only_trained_so_far(run) -> None:
    run.stages = ("data", "surgery", "recalibration")
    folder, page = report(run)
    plots = {f"{name}.{end}" for name in ("recalibration", "optimization", "validation_by_position") for end in ENDS}
    assert {path.name for path in folder.iterdir()} == plots | {"verification.csv", "versions.csv", "report.html"}
    assert "Not complete and therefore left out: export, evaluation." in page.text("p")
    assert set(page.tables) == {"verification", "versions"}


def test_files_of_an_earlier_report_are_removed(run) -> None:
    recipe, folder = run.build(), run.folder / "report"
    folder.mkdir()
    (folder / "tasks.csv").write_text("old", encoding="utf-8")
    write_report(recipe, run.folder, folder, REPORT.reported)
    assert not (folder / "tasks.csv").exists() and (folder / "recall_by_length.svg").is_file()


def test_every_plot_lies_beside_the_page_as_an_image_too(shown) -> None:
    folder, _ = shown
    for name in (*EVALUATION, *TRAINING):
        width, height = Image.open(folder / f"{name}.png").size
        box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', (folder / f"{name}.svg").read_text(encoding="utf-8"))
        assert width / height == pytest.approx(float(box[1]) / float(box[2]), rel=0.01)


def test_equal_inputs_give_equal_bytes(reported, tmp_path: Path) -> None:
    before = reported.folder / "report"
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 20.0, "svg.fonttype": "path"}):
        write_report(reported.recipe(), reported.folder, tmp_path / "second", REPORT.reported)
    names = sorted(path.name for path in before.iterdir())
    assert names == sorted((*FILES, "report.html")) == sorted(path.name for path in (tmp_path / "second").iterdir())
    for name in names:
        first = (before / name).read_bytes()
        assert first == (tmp_path / "second" / name).read_bytes()
        assert b"<dc:date>" not in first and b"Software" not in first and str(before).encode() not in first
