"""Needles and LongBench through the whole stage, against plain lm-eval on the same samples, and killed in between."""

import json
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from eval.config import EvaluationConfig, LongBenchConfig
from eval.errors import EvaluationError
from eval.models import Models
from eval.results import Results
from eval.run import run
from eval.tasks.lm_tasks import task_over
from eval.tasks.longbench import load_items
from eval.variants.loading import load_variant
from tests.forked import REPOSITORY, Starter


def item(text: str, place: int) -> dict[str, object]:
    """In the form of LongBench's own files."""
    return {"input": "Who is it about?", "context": text, "answers": [text[place : place + 30], "a girl"], "length": 9}


@pytest.fixture(scope="module")
def longbench(stories: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, held_out = tmp_path_factory.mktemp("longbench"), stories[400:]
    for name in ("multifieldqa_en", "lcc"):
        texts = [" ".join(held_out[3 * number : 3 * number + 1 + 2 * number]) for number in range(4)]
        items = [json.dumps(item(text, 40)) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(items) + "\n")
    return folder


@pytest.fixture(scope="module")
def config(longbench: Path) -> EvaluationConfig:
    return EvaluationConfig(
        variants=("rope", "yarn", "dynamic_ntk", "crop", "drope"),
        context_factors=(1, 2),
        batch_tokens=2048,
        loss={"tokens": 512},
        niah={"tasks": ("niah_single_1", "lost_in_the_middle"), "samples": 6, "new_tokens": 16, "depths": 3},
        longbench={"tasks": ("multifieldqa_en", "lcc"), "folder": longbench},
    )


@pytest.fixture(scope="module")
def whole(config: EvaluationConfig, models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out_dir = tmp_path_factory.mktemp("whole") / "evaluation"
    return out_dir, run(config, models=models, out_dir=out_dir)


def records(out_dir: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (out_dir / f"samples-{name}.jsonl").read_text().splitlines()]


def test_every_task_is_scored_with_its_depths(whole: tuple[Path, Results], config: EvaluationConfig) -> None:
    out_dir, results = whole
    by_task = {(one.task, one.variant, one.context_factor): one for one in results.values}
    for variant in config.variants:
        for factor in (1, 2):
            assert by_task["lost_in_the_middle", variant, factor].depths == (0, 0.5, 1, 0, 0.5, 1)
            assert len(by_task["niah_single_1", variant, factor].depths) == 6
        assert len(by_task["lcc", variant, 2].values) == 4
    metrics = {(score.task, score.metric) for score in results.scores}
    assert metrics == {
        ("loss", "nats_per_token"),
        ("niah_single_1", "string_match"),
        ("lost_in_the_middle", "string_match"),
        ("multifieldqa_en", "qa_f1"),
        ("lcc", "code_sim"),
    }
    assert not list(out_dir.rglob("*.answers")), "the journal is gone when the unit is whole"
    kept = records(out_dir, "lcc-rope-2x")
    assert [record["value"] for record in kept] == list(by_task["lcc", "rope", 2].values)
    assert any(record["value"] > 0 for record in kept), "a score that could not tell would be zero throughout"


def lm_eval_answers(model: object, source: Path, tasks: list, manager: TaskManager, length: int) -> dict:
    adapter = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(source), max_length=length, batch_size=1)
    results = simple_evaluate(model=adapter, tasks=tasks, task_manager=manager, log_samples=True)
    return {
        name: {one["doc_id"]: (one["resps"][0][0], one) for one in samples}
        for name, samples in results["samples"].items()
    }


@pytest.mark.parametrize("variant", ["rope", "yarn", "drope"])
def test_needle_scores_are_those_of_lm_eval(
    variant: str, whole: tuple[Path, Results], source: Path, drope: Path
) -> None:
    out_dir, _ = whole
    manager = TaskManager(include_path=str(out_dir / "niah"), include_defaults=False)
    model = load_variant(variant, drope if variant == "drope" else source, 2, context=512)
    names = ["niah_single_1-2x", "lost_in_the_middle-2x"]
    theirs = lm_eval_answers(model, source, names, manager, 1024)
    for name in names:
        ours = records(out_dir, f"{name[:-3]}-{variant}-2x")
        assert len(ours) == 6 and any(record["got"] for record in ours)
        for record in ours:
            answer, sample = theirs[name][record["index"]]
            assert answer.startswith(record["got"]), "ours ends where all is found"
            assert record["value"] == sample["string_match"]


def test_longbench_scores_are_those_of_lm_eval(
    whole: tuple[Path, Results], source: Path, longbench: Path, config: EvaluationConfig
) -> None:
    """On prompts that fit: of others lm-eval drops the beginning, LongBench the middle."""
    out_dir, _ = whole
    model = load_variant("rope", source, 2, context=512)
    fitting = 0
    for name in ("multifieldqa_en", "lcc"):
        items = load_items(name, config.longbench)
        task = task_over(f"longbench_{name}", items)
        theirs = lm_eval_answers(model, source, [task], TaskManager(include_defaults=False), 1024)[f"longbench_{name}"]
        for record in records(out_dir, f"{name}-rope-2x"):
            if record["prompt_tokens"] <= 1024 - 64 and not record["cut"]:
                answer, sample = theirs[record["index"]]
                assert record["got"] == answer
                assert record["value"] == pytest.approx(sample["score"])
                fitting += 1
    assert fitting >= 4


def test_a_prompt_that_is_too_long_loses_its_middle(whole: tuple[Path, Results]) -> None:
    kept = records(whole[0], "lcc-rope-2x")
    assert any(record["cut"] for record in kept)
    assert {record["prompt_tokens"] for record in kept if record["cut"]} == {1024 - 64}


def test_a_killed_unit_goes_on_after_its_last_answer(
    whole: tuple[Path, Results], config: EvaluationConfig, models: Models, starter: Starter, tmp_path: Path
) -> None:
    out_dir = tmp_path / "evaluation"
    niah = config.niah.model_copy(update={"samples": 24, "tasks": ("niah_single_1",), "context_factors": (2,)})
    slow = config.model_copy(update={"variants": ("rope",), "batch_tokens": 600, "niah": niah, "longbench": None})
    (tmp_path / "arguments").write_bytes(pickle.dumps((slow, models, out_dir)))
    program = (
        "import pickle, sys, torch; torch.set_num_threads(1)\n"
        "import eval.answers.generation; eval.answers.generation._MOST_ROWS = 2\n"
        "from eval.run import run\n"
        "config, models, out_dir = pickle.load(open(sys.argv[1], 'rb')); run(config, models=models, out_dir=out_dir)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "arguments")]
    process = starter.Popen(command, cwd=REPOSITORY)
    journal = out_dir / "units" / "niah_single_1-rope-2x.answers"
    deadline = time.monotonic() + 120
    while not journal.exists() or len(journal.read_text().splitlines()) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = [json.loads(line) for line in journal.read_text().splitlines()]
    assert 4 <= len(before) < 24
    assert not (out_dir / "results.json").exists()
    run(slow, models=models, out_dir=out_dir)
    after = records(out_dir, "niah_single_1-rope-2x")
    assert [record["index"] for record in after] == list(range(24))
    kept = {record["index"]: record["got"] for record in before}
    assert {index: after[index]["got"] for index in kept} == kept
    fresh = records(whole[0], "niah_single_1-rope-2x")
    assert [record["got"] for record in after[:6]] == [record["got"] for record in fresh]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"lcc\.jsonl:1: not JSON: \w"),
        ('{"context": "a", "answers": ["b"]}', r"lcc\.jsonl:1: needs context, input"),
        ('{"context": "a", "input": "b", "answers": []}', r"lcc\.jsonl:1: needs context, input"),
        ("", r"lcc\.jsonl has no items"),
    ],
)
def test_unusable_longbench_files_are_one_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "lcc.jsonl").write_text(line)
    with pytest.raises(EvaluationError, match=message):
        load_items("lcc", LongBenchConfig(folder=tmp_path))


def test_all_missing_data_are_named_before_anything_runs(
    config: EvaluationConfig, models: Models, tmp_path: Path
) -> None:
    asked = {"longbench": LongBenchConfig(folder=tmp_path), "harness": ({"name": "x", "path": tmp_path / "x.jsonl"},)}
    asked["niah"] = {"tasks": ("niah_single_2",), "essays": tmp_path / "essays.txt"}
    wanting = EvaluationConfig(**config.model_dump(by_alias=False) | asked)
    with pytest.raises(EvaluationError) as caught:
        run(wanting, models=models, out_dir=tmp_path / "evaluation")
    files = ("x.jsonl", "multifieldqa_en.jsonl", "musique.jsonl", "gov_report.jsonl", "lcc.jsonl", "essays.txt")
    for path in (tmp_path / name for name in files):
        assert f": {path} does not exist; " in str(caught.value)
    assert str(caught.value).endswith("; or set missing_data: leave_out")
    assert not (tmp_path / "evaluation").exists()


def test_tasks_that_lack_their_data_are_left_out_where_that_is_wanted(
    config: EvaluationConfig, longbench: Path, models: Models, tmp_path: Path
) -> None:
    niah = {"tasks": ("niah_single_1", "niah_single_2"), "samples": 2, "new_tokens": 4, "essays": tmp_path / "none.txt"}
    asked = {"niah": niah, "context_factors": (1,), "variants": ("rope",), "missing_data": "leave_out"}
    asked["longbench"] = {"tasks": ("lcc", "gov_report"), "folder": longbench, "limit": 1}
    results = run(
        EvaluationConfig(**config.model_dump(by_alias=False) | asked), models=models, out_dir=tmp_path / "evaluation"
    )
    assert set(results.left_out) == {"niah_single_2", "gov_report"}
    assert "none.txt does not exist" in results.left_out["niah_single_2"]
    assert {score.task for score in results.scores} == {"loss", "niah_single_1", "lcc"}
    assert results.config.niah.tasks == ("niah_single_1",)
    assert Results.load(tmp_path / "evaluation").left_out == results.left_out
