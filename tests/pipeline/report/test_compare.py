"""Runs side by side: what is compared in pairs, what is not, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from eval.results import RESULTS, Results, SampleValues
from pipeline.cli import main
from pipeline.errors import RecipeError
from pipeline.report.compare import sections
from pipeline.report.compare_page import write_comparison
from pipeline.report.runs import facts_of, key_facts, read_runs
from pipeline.report.samples import same_samples
from pipeline.runs.manifest import Manifest, describe_outputs
from pipeline.stages.order import REPORT
from tests.pipeline.report.conftest import Run
from tests.pipeline.report.test_page import read


def made(folder: Path, change: Callable[[Results], Results] = lambda results: results, **settings: object) -> Path:
    """A run with needles and LongBench, its results changed and recorded like those of an evaluation."""
    run = Run(folder, variants=("rope", "drope"), needles=True, longbench=True, curves=False)
    for name, value in settings.items():
        setattr(run, name, value)
    run.build()
    evaluation = folder / "evaluation"
    change(Results.load(evaluation)).save(evaluation)
    manifest = Manifest.load(evaluation)
    files = [evaluation / name for name in (RESULTS, "results.csv")]
    manifest.model_copy(update={"outputs": describe_outputs(evaluation, files)}).save(evaluation)
    return folder


def with_recall(values: np.ndarray) -> Callable[[Results], Results]:
    """The results with these values behind the recall of DroPE at 4x, and their mean as its score."""

    def change(results: Results) -> Results:
        place = {"variant": "drope", "task": "recall", "metric": "exact_match", "context_factor": 4}
        kept = SampleValues(**place, values=tuple(values.tolist()))
        score = {"value": float(values.mean()), "stderr": float(values.std(ddof=1) / len(values) ** 0.5)}
        scores = tuple(
            s.model_copy(update=score) if (s.variant, s.task, s.context_factor) == ("drope", "recall", 4) else s
            for s in results.scores
        )
        return results.model_copy(update={"values": (*results.values, kept), "scores": scores})

    return change


@pytest.fixture
def recalls() -> tuple[np.ndarray, np.ndarray]:
    """200 answers of two models that find the same samples hard; the second has eight more right."""
    first = (np.random.default_rng(0).random(200) < 0.5).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:8]] = 1.0
    return first, second


@pytest.fixture
def two(tmp_path: Path, recalls: tuple[np.ndarray, np.ndarray]) -> list[Path]:
    return [made(tmp_path / name, with_recall(values)) for name, values in zip("ab", recalls, strict=True)]


def recall_at_4x(folders: list[Path]):
    outcome = {section.heading: section for section in sections(read_runs(folders, REPORT.reported))}
    return {line.length: line for line in outcome["Recall (share of facts)"].lines}["4x"].cells


def test_the_same_samples_are_compared_in_pairs(two: list[Path], recalls: tuple[np.ndarray, np.ndarray]) -> None:
    """Eight of 200 more right: far within two errors of the shares, and certain on the same samples."""
    first, second = recall_at_4x(two)
    assert (first.verdict, first.difference) == ("", "")
    assert (second.verdict, second.how) == ("better", "")
    error = (recalls[1] - recalls[0]).std(ddof=1) / 200**0.5
    assert second.difference.startswith("+0.04") and float(second.difference.split("± ")[1]) == pytest.approx(
        error, abs=0.005
    )
    assert recall_at_4x(two[::-1])[1].verdict == "worse"


def test_other_samples_are_not(tmp_path: Path, two: list[Path], recalls: tuple[np.ndarray, np.ndarray]) -> None:
    seed = lambda results: results.model_copy(update={"config": results.config.model_copy(update={"seed": 7})})  # noqa: E731
    other = made(tmp_path / "seed", lambda results: seed(with_recall(recalls[1])(results)))
    cell = recall_at_4x([two[0], other])[1]
    assert (cell.verdict, cell.how) == ("within the noise", "unpaired")
    assert cell.difference.startswith("+0.04 ± 0.05")  # errors of two shares near a half, added


@pytest.mark.parametrize(
    ("task", "change", "same"),
    [
        ("recall", {"tokenizer_digest": "00" * 32}, False),
        ("recall", {"training_length": 128}, False),
        ("recall", {"environment": {"device": "cuda"}}, True),
        ("niah_single_1", {"config": {"seed": 3}}, False),
        ("niah_single_1", {"config": {"batch_tokens": 1}}, True),
        ("niah_single_1", {"niah": {"samples": 41}}, False),
        ("niah_single_1", {"niah": {"context_factors": (2,)}}, True),
        ("recall", {"niah": {"samples": 41}}, True),
    ],
)
def test_what_makes_samples_others(two: list[Path], task: str, change: dict, same: bool) -> None:
    one, other = read_runs(two, REPORT.reported)
    results, config = other.results, other.results.config
    if "niah" in change:
        change = {"config": {"niah": config.niah.model_copy(update=change["niah"])}}
    if "config" in change:
        change = {"config": config.model_copy(update=change["config"])}
    changed = type(other)(other.name, other.folder, other.data, results.model_copy(update=change), other.variant)
    assert same_samples(one, other, task)
    assert same_samples(one, changed, task) == same


def test_a_loss_on_other_text_is_unpaired_and_on_other_tokens_not_compared(two: list[Path]) -> None:
    one, other = read_runs(two, REPORT.reported)
    manifest = other.data.manifests["evaluation"]
    manifest.inputs["data"] = "00" * 32
    assert not same_samples(one, other, "loss") and same_samples(one, other, "recall")
    results = other.results.model_copy(update={"tokenizer_digest": "00" * 32})
    changed = type(other)(other.name, other.folder, other.data, results, other.variant)
    losses = next(s for s in sections([one, changed]) if s.heading == "Loss (nats per token)")
    assert [(line.length, line.cells[1].verdict, line.cells[1].difference) for line in losses.lines] == [
        (f"{factor}x", "of other tokens", "") for factor in (1, 2, 4, 8)
    ]


def test_the_mean_of_other_tasks_is_not_compared(two: list[Path]) -> None:
    one, other = read_runs(two, REPORT.reported)
    fewer = other.results.config.niah.model_copy(update={"tasks": ("niah_single_1",)})
    config = other.results.config.model_copy(update={"niah": fewer})
    scored = [s for s in other.results.scores if s.metric != "string_match" or s.task in fewer.tasks]
    results = other.results.model_copy(update={"config": config, "scores": tuple(scored)})
    changed = type(other)(other.name, other.folder, other.data, results, other.variant)
    outcome = {section.heading: section for section in sections([one, changed])}
    mean = outcome["Needles (share found, mean of RULER's tasks)"].lines[0].cells[1]
    single = outcome["niah_single_1 (string_match)"].lines[0].cells[1]
    assert (mean.verdict, single.verdict) == ("of other tasks", "within the noise")


def test_key_facts_say_what_differs(tmp_path: Path) -> None:
    runs = read_runs([made(tmp_path / "short"), made(tmp_path / "long", steps=120)], REPORT.reported)
    facts = {name: (values, differ) for name, values, differ in key_facts(runs)}
    assert facts["Tokens"] == (["30,720", "61,440"], True) and facts["Steps"] == (["60", "120"], True)
    assert facts["Model"] == (["models/facts-600k"] * 2, False)
    assert facts_of(runs[0])["Learning rate"] == "0.001 cosine" and facts_of(runs[0])["Evaluated"].startswith(
        "2026-03-01"
    )


def test_the_page_is_one_file_without_references(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    result = CliRunner().invoke(main, ["report", "--compare", *map(str, two), "--out", str(out)])
    assert result.exit_code == 0 and result.stdout == f"comparison: {out}\n"
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    page = read(out)
    assert not {"script", "link", "img", "iframe", "image"} & {tag for tag, _ in page.tags}
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name.endswith("href")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert {link.removeprefix("#") for link in links} <= set(ids) and len(ids) == len(set(ids))
    assert sum(tag == "svg" for tag, _ in page.tags) == 3  # loss, recall, needles
    assert page.text("h1") == "b against a"
    heading, *rows = page.tables["scores"]
    assert heading == ["Length", "a", "b"]
    assert [row[0] for row in rows if len(row) == 1] == [
        *("Recall (share of facts)", "Needles (share found, mean of RULER's tasks)"),
        *(f"{name} (string_match)" for name in ("niah_single_1", "niah_multikey_2", "niah_multivalue")),
        *("niah_depth (string_match)", "lost_in_the_middle (string_match)"),
        "LongBench (percent, mean of the tasks)",
        *("multifieldqa_en (qa_f1)", "musique (qa_f1)", "gov_report (rouge_l)", "lcc (code_sim)"),
        "Loss (nats per token)",
    ]
    first = out.read_bytes()
    assert write_comparison(two, out, REPORT.reported).read_bytes() == first


def test_percent_stay_percent_by_task(two: list[Path]) -> None:
    outcome = {section.heading: section for section in sections(read_runs(two, REPORT.reported))}
    value = float(outcome["lcc (code_sim)"].lines[0].cells[0].value)
    assert 1 < value <= 100


def test_what_cannot_be_compared_is_refused(two: list[Path], tmp_path: Path) -> None:
    unfinished = Run(tmp_path / "unfinished", stages=("data", "surgery", "recalibration"))
    unfinished.build()
    rope = made(tmp_path / "rope", variants=("rope", "yarn"))
    (tmp_path / "empty").mkdir()
    for folders, message in (
        ([two[0]], "two runs or more, not 1"),
        ([two[0], two[0]], "is given twice"),
        ([two[0], tmp_path / "empty"], r"empty: no folder of a run \(it has no recipe.yaml\)"),
        ([two[0], unfinished.folder], r"unfinished: its evaluation is not complete; run drope evaluate"),
        ([two[0], rope], "rope: no DroPE was scored"),
    ):
        out = tmp_path / "page.html"
        with pytest.raises(RecipeError, match=message):
            write_comparison(folders, out, REPORT.reported)
        result = CliRunner().invoke(main, ["report", "--compare", *map(str, folders), "--out", str(out)])
        assert result.exit_code == 2 and not out.exists()
        assert re.fullmatch(rf"drope: .*{message}.*\n", result.stderr)


def test_the_command_takes_a_recipe_or_folders(two: list[Path], tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["report", "--help"]).output
    assert "RECIPE [KEY=VALUE]..." in said and "--compare RUN1 RUN2..." in said
    refused = CliRunner().invoke(main, ["report", "recipe.yaml", "--out", "page.html"])
    assert refused.exit_code == 2 and "--out goes with --compare" in refused.output
    absent = CliRunner().invoke(main, ["report", str(tmp_path / "none.yaml"), "name=x"])
    assert absent.exit_code == 2 and "cannot read the recipe" in absent.stderr
    folder = CliRunner().invoke(main, ["report", "--compare", *map(str, two), "--out", str(tmp_path)])
    assert folder.exit_code == 2 and "is a folder; name the page" in folder.stderr
