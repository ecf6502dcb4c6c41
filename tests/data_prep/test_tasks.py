"""Work in pieces: any number of tasks and workers, killed anywhere, end in the same bytes."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.artifact import ShardSet
from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.prepare import check_merge, run, work
from data_prep.progress import Progress
from data_prep.task import Task
from data_prep.tokenizers.checked import CheckedEncoder
from data_prep.tokenizers.reference import load_tokenizer
from data_prep.work import do_piece
from foundation.errors import DiskError

PIECE = 20_000  # bytes: about thirty pieces


def config_of(*paths: Path, **options: object) -> DataConfig:
    sources = [{"path": str(path)} for path in paths]
    settings = {"sources": sources, "row_length": 64, "validation_fraction": 0.1, "piece_bytes": PIECE}
    return DataConfig.model_validate(settings | options)


@pytest.fixture
def corpus(tmp_path: Path, stories: list[str], write_jsonl, write_fineweb) -> tuple[Path, ...]:
    (tmp_path / "in").mkdir()
    return (
        write_jsonl(tmp_path / "in" / "a.jsonl", [*stories[:150], "", " "]),
        write_jsonl(tmp_path / "in" / "b.jsonl.gz", stories[150:220]),
        write_fineweb(tmp_path / "in" / "c.parquet", stories[220:], row_group_size=20),
    )


@pytest.fixture
def settings(tiny_tokenizer: Path) -> dict:
    return {"tokenizer": tiny_tokenizer, "model_vocab_size": 2048}


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file of a complete preparation but lineage.json, which says who made what and when."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lineage.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def expected(tmp_path: Path, corpus: tuple[Path, ...], settings: dict) -> dict[str, str]:
    run(config_of(*corpus), **settings, out_dir=tmp_path / "expected", workers=1)
    files = fingerprint(tmp_path / "expected")
    assert len(files) > 25
    return files


@pytest.mark.parametrize(("tasks", "workers"), [(1, 2), (2, 1), (3, 2), pytest.param(50, 1, marks=pytest.mark.long)])
@pytest.mark.slow
def test_any_number_of_tasks_and_workers_gives_the_same_bytes(
    tmp_path, corpus, settings, expected, tasks: int, workers: int
):
    out = tmp_path / "out"
    order = list(range(tasks))
    random.Random(tasks).shuffle(order)
    done = [work(config_of(*corpus), **settings, out_dir=out, task=task, of=tasks, workers=workers) for task in order]
    check_merge(config_of(*corpus), tokenizer=settings["tokenizer"], out_dir=out)
    run(config_of(*corpus), **settings, out_dir=out, workers=workers)
    assert fingerprint(out) == expected
    assert max(done) - min(done) <= 1 and sum(done) > 15


def test_a_finished_piece_is_never_done_again(tmp_path, corpus, settings):
    config = config_of(*corpus)
    assert work(config, **settings, out_dir=tmp_path / "out", task=0, of=3, workers=1) > 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert work(config, **settings, out_dir=tmp_path / "out", task=0, of=3, workers=1) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_merge_with_a_piece_missing_names_it(tmp_path, corpus, settings):
    config = config_of(*corpus)
    with pytest.raises(DataError, match="no task has worked here yet"):
        check_merge(config, tokenizer=settings["tokenizer"], out_dir=tmp_path / "out")
    work(config, **settings, out_dir=tmp_path / "out", task=0, of=2, workers=1)
    with pytest.raises(DataError, match=r"\d+ pieces are not done, the first is 00-a-000001"):
        check_merge(config, tokenizer=settings["tokenizer"], out_dir=tmp_path / "out")


def test_tasks_that_start_together_on_an_empty_folder(tmp_path, corpus, settings, expected, starter):
    """All plan, one plan counts; all write, each its own pieces; nobody refuses anybody."""
    words = ["-c", START.replace("of=2", "of=6"), config_of(*corpus).model_dump_json(), str(settings["tokenizer"])]
    starter.run_together([[*words, str(tmp_path / "out"), str(number)] for number in range(6)])
    check_merge(config_of(*corpus), tokenizer=settings["tokenizer"], out_dir=tmp_path / "out")
    run(config_of(*corpus), **settings, out_dir=tmp_path / "out", workers=1)
    assert fingerprint(tmp_path / "out") == expected


def open_progress(config: DataConfig, tokenizer: Path, folder: Path) -> Progress:
    (folder / "pieces").mkdir(parents=True)
    (folder / "shards").mkdir()
    return Progress.of_folder(config, load_tokenizer(tokenizer), folder)


def test_a_piece_that_another_process_did_meanwhile_is_not_done_again(tmp_path, corpus, settings):
    config = config_of(*corpus)
    items = open_progress(config, settings["tokenizer"], tmp_path / "out").items(0, 1)
    first = next(items)
    done = work(config, **settings, out_dir=tmp_path / "out", task=0, of=1, workers=1)
    assert done > 10 and first.record_path.is_file()
    assert list(items) == []


def test_a_task_that_comes_after_the_merge_does_no_harm(tmp_path, corpus, settings, expected):
    """It had planned its work before, and finds the folder of the records gone."""
    config = config_of(*corpus)
    late = open_progress(config, settings["tokenizer"], tmp_path / "out")
    run(config, **settings, out_dir=tmp_path / "out", workers=1)
    with pytest.raises(DiskError, match="cannot be written"):
        Task(late, settings["tokenizer"], 1, 0, 5).do()
    for item in list(late.items(0, 1))[:5]:
        with pytest.raises(DiskError, match="cannot be written"):
            do_piece(item, CheckedEncoder(late.encoder, None, 0))
        assert fingerprint(tmp_path / "out") == expected
    assert work(config, **settings, out_dir=tmp_path / "out", task=0, of=5, workers=1) == 0
    run(config, **settings, out_dir=tmp_path / "out", workers=1)
    assert fingerprint(tmp_path / "out") == expected


@pytest.mark.parametrize(("source", "error"), [(0, FileNotFoundError), (1, DiskError)])
def test_a_piece_whose_folder_is_merged_meanwhile_leaves_nothing(
    tmp_path, corpus, settings, write_jsonl, source: int, error: type[Exception]
):
    """Of the second source there is a record alone, which must not bring back the folder that the merge removed."""
    nothing = write_jsonl(tmp_path / "in" / "empty.jsonl", ["", " "])
    config = config_of(sources=[{"path": str(corpus[0])}, {"path": str(nothing), "split": "validation"}])
    late = open_progress(config, settings["tokenizer"], tmp_path / "out")
    merged: list[dict[str, str]] = []

    def merge_meanwhile(text_bytes: int, tokens: int) -> None:
        if not merged:
            run(config, **settings, out_dir=tmp_path / "out", workers=1)
            merged.append(fingerprint(tmp_path / "out"))

    with pytest.raises(error):
        do_piece(late.item((source, 0)), CheckedEncoder(late.encoder, None, 0), merge_meanwhile)
    assert [fingerprint(tmp_path / "out")] == merged


@pytest.mark.parametrize(("change", "says"), [("new", "is new"), ("gone", "is gone"), ("other", "has changed")])
def test_files_that_are_not_those_of_the_plan_are_refused(
    tmp_path, corpus, settings, stories, write_jsonl, change: str, says: str
):
    config = config_of(tmp_path / "in" / "*.jsonl*")
    for task in range(2):
        work(config, **settings, out_dir=tmp_path / "out", task=task, of=2, workers=1)
    if change == "gone":
        corpus[1].unlink()
    else:
        write_jsonl(tmp_path / "in" / ("z.jsonl" if change == "new" else "a.jsonl"), stories[:3])
    for call in (run, check_merge):
        options = settings if call is run else {"tokenizer": settings["tokenizer"]}
        with pytest.raises(DataError, match=rf"{says} since the work was planned; remove .*out to begin anew"):
            call(config, **options, out_dir=tmp_path / "out")


@pytest.mark.parametrize(("task", "of"), [(2, 2), (-1, 2), (0, 0)])
def test_a_task_that_does_not_exist_is_refused(tmp_path, corpus, settings, task: int, of: int):
    with pytest.raises(DataError, match="tasks are counted from 0"):
        work(config_of(*corpus), **settings, out_dir=tmp_path / "out", task=task, of=of)
    assert not (tmp_path / "out").exists()


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path, corpus, settings, stories, write_jsonl):
    config = config_of(*corpus)
    work(config, **settings, out_dir=tmp_path / "out", task=0, of=40, workers=1)
    write_jsonl(corpus[0], stories[:149])
    with pytest.raises(DataError, match=r"a\.jsonl: has changed since the work was planned"):
        run(config, **settings, out_dir=tmp_path / "out", workers=1)


def test_a_budget_gives_the_same_bytes_however_the_work_was_split(tmp_path, corpus, settings):
    config = config_of(corpus[0], corpus[2], tokens=30_000)
    whole = run(config, **settings, out_dir=tmp_path / "whole", workers=1)
    for task in (4, 1, 0, 3, 2):
        work(config, **settings, out_dir=tmp_path / "split", task=task, of=5, workers=1)
    split = run(config, **settings, out_dir=tmp_path / "split", workers=2)
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "split")
    assert split == whole
    for source in whole.sources:
        last = source.train.shards[-1]
        assert 15_000 <= source.train.tokens < 15_000 + 2000
        assert source.train.tokens - last.tokens < 15_000
    everything = run(config_of(corpus[0], corpus[2]), **settings, out_dir=tmp_path / "all", workers=1)
    for some, every in zip(whole.sources, everything.sources, strict=True):
        assert some.train.shards[:-1] == every.train.shards[: len(some.train.shards) - 1]
        assert some.counts.surplus > 0 and some.counts.documents <= every.counts.documents


def test_a_budget_takes_more_files_when_the_first_hold_too_little(tmp_path, settings, stories, write_jsonl):
    """The sample is made of long words: it promises far more tokens in the files than there are."""
    (tmp_path / "in").mkdir()
    for number in range(8):
        texts = ["qx" * 400] * 3 + [" ".join(story.split()[:40]) for story in stories[number * 40 : number * 40 + 40]]
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", texts)
    config = config_of(tmp_path / "in", tokens=9_000, piece_bytes=1_000_000)
    shards = run(config, **settings, out_dir=tmp_path / "out", workers=1)
    assert shards.sources[0].train.tokens >= 9_000


def test_a_corpus_smaller_than_the_budget_ends_with_what_there_is(tmp_path, corpus, settings, caplog):
    shards = run(config_of(*corpus, tokens=10**9), **settings, out_dir=tmp_path / "out", workers=1)
    assert "ended after" in caplog.text
    assert sum(source.counts.surplus for source in shards.sources) == 0


START = """
import sys
from pathlib import Path
from data_prep.config import DataConfig
from data_prep.prepare import run, work
import logging

logging.basicConfig(level=logging.WARNING)
if __name__ == "__main__":
    config = DataConfig.model_validate_json(sys.argv[1])
    options = {"tokenizer": Path(sys.argv[2]), "model_vocab_size": 2048, "out_dir": Path(sys.argv[3]), "workers": 2}
    if len(sys.argv) > 4:
        work(config, **options, task=int(sys.argv[4]), of=2)
    else:
        run(config, **options)
"""


def start(
    folder: Path, config: DataConfig, tokenizer: Path, *task: int, before: Path | None = None
) -> subprocess.Popen[str]:
    """A preparation in a process of its own; modules in `before` are found before the installed ones."""
    script = folder / "start.py"
    script.write_text(START)
    command = [sys.executable, str(script), config.model_dump_json(), str(tokenizer), str(folder / "out")]
    path = os.pathsep.join(map(str, filter(None, [before, Path(__file__).parents[2]])))
    environment = {**os.environ, "PYTHONPATH": path}
    log = (folder / "log.txt").open("w")
    return subprocess.Popen([*command, *map(str, task)], env=environment, stderr=log, text=True)


def children(process: int) -> list[int]:
    """Worker processes of a process, by /proc."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def kill_after_more_records(process: subprocess.Popen, records: Path, more: int, delay: float) -> bool:
    """SIGKILL the process a moment after `more` pieces were completed; whether it was still alive."""
    already = len(list(records.glob("*-*.json"))) if records.is_dir() else 0
    while process.poll() is None:
        if records.is_dir() and len(list(records.glob("*-*.json"))) >= already + more:
            deadline = time.monotonic() + delay
            while time.monotonic() < deadline:
                pass
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("points", [6, pytest.param(32, marks=pytest.mark.long)])
def test_sigkill_at_many_points_ends_in_the_same_bytes(tmp_path, corpus, settings, points: int):
    """Every attempt is killed at another moment: before the first piece, between pieces, within, after the last."""
    config = config_of(*corpus, piece_bytes=4_000)
    run(config, **settings, out_dir=tmp_path / "expected", workers=1)
    expected = fingerprint(tmp_path / "expected")
    draw = random.Random(7)
    out = tmp_path / "out"
    kills = 0
    while kills < points:
        task = [kills % 2] if kills % 3 else []  # now and then a task of two, else all of the work and the merge
        process = start(tmp_path, config, settings["tokenizer"], *task)
        killed = kill_after_more_records(process, out / "pieces", draw.choice([0, 1, 2, 3]), draw.uniform(0, 0.05))
        assert killed or process.returncode == 0
        kills += killed
        if (out / "shards.json").is_file():
            assert start(tmp_path, config, settings["tokenizer"]).wait() == 0
            assert fingerprint(out) == expected
            shutil.rmtree(out)
    assert start(tmp_path, config, settings["tokenizer"]).wait() == 0
    assert fingerprint(out) == expected


def test_a_merge_that_was_killed_is_finished(tmp_path, corpus, settings, expected):
    """shards.json is there, the surplus shards and the records of the pieces are not yet gone."""
    out = tmp_path / "out"
    run(config_of(*corpus), **settings, out_dir=out, workers=1)
    (out / "pieces").mkdir()
    (out / "pieces" / "plan.json").write_text("{}")
    (out / "shards" / "00-a-000099-train.bin").write_bytes(b"surplus")
    for folder in (out, out / "shards", out / "pieces"):  # of an attempt by an earlier version
        (folder / ".shards.json.another-host-4026531836-17.partial").write_bytes(b"half")
    run(config_of(*corpus), **settings, out_dir=out, workers=1)
    assert fingerprint(out) == expected


def test_workers_die_with_their_parent(tmp_path, corpus, settings):
    process = start(tmp_path, config_of(*corpus, backend="reference"), settings["tokenizer"])
    workers: list[int] = []
    while len(workers) < 2 and process.poll() is None:
        workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        pass
    assert workers and not any(map(alive, workers))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_a_failure_and_costs_only_its_piece(tmp_path, corpus, settings):
    config = config_of(*corpus, piece_bytes=4_000)
    process = start(tmp_path, config, settings["tokenizer"])
    records = tmp_path / "out" / "pieces"
    while not (records.is_dir() and len(list(records.glob("*-*.json"))) > 2):
        assert process.poll() is None
    workers = children(process.pid)
    os.kill(workers[-1], signal.SIGKILL)
    assert process.wait() == 1
    done = [path.stem for path in records.glob("*-??????.json")]
    assert len(done) > 2
    shards = tmp_path / "out" / "shards"
    before = {path: path.stat().st_mtime_ns for name in done for path in shards.glob(f"{name}-*")}
    assert start(tmp_path, config, settings["tokenizer"]).wait() == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(ShardSet.load(tmp_path / "out").all_shards()) * 2 > len(before) >= 2 * len(done)


FAULTY = """
import fastokens

class Encoding:
    def __init__(self, ids):
        self.ids = ids

class Tokenizer:
    def __init__(self, library):
        self.library = library

    @classmethod
    def from_json(cls, path):
        return cls(fastokens.Tokenizer.from_file(path))

    def encode(self, text, add_special_tokens):
        ids = list(self.library.encode(text).ids)
        return Encoding([ids[0] ^ 1, *ids[1:]] if "Zanzibar" in text else ids)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_library_that_goes_wrong_midway_is_given_up_and_its_piece_done_again(
    tmp_path, settings, stories, write_jsonl, workers: int
):
    """A library that is right until a word comes up, found under tokie's name; the sample does not have the word."""
    (tmp_path / "before" / "tokie").mkdir(parents=True)
    (tmp_path / "before" / "tokie" / "__init__.py").write_text(FAULTY)
    texts = [*stories[:300], "They flew to Zanzibar. The end.", *stories[300:]]
    file = write_jsonl(tmp_path / "in.jsonl", texts)
    config = config_of(file, backend="tokie", check_fraction=1.0, piece_bytes=10**9 if workers == 1 else 40_000)
    assert start(tmp_path, config, settings["tokenizer"], before=tmp_path / "before").wait() == 0
    log = (tmp_path / "log.txt").read_text()
    assert "They flew to Zanzibar" in log and "going on with the reference" in log
    run(config.model_copy(update={"backend": "reference"}), **settings, out_dir=tmp_path / "expected", workers=1)
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "expected")
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    encoders = [entry["encoder"].split()[0] for entry in lineage.values()]
    assert "tokenizers" in encoders and (workers == 1 or encoders[0] == "tokie")


def test_lineage_says_who_made_which_shard(tmp_path, corpus, settings):
    config = config_of(*corpus, check_fraction=0.5, backend="fastokens")
    shards = run(config, **settings, out_dir=tmp_path / "out", workers=1)
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    prefixes = {shard.prefix.rsplit("-", 1)[0] for shard in shards.all_shards()}
    assert prefixes <= lineage.keys()
    assert {entry["encoder"].split()[0] for entry in lineage.values()} == {"fastokens"}
    documents = sum(entry["documents"] for entry in lineage.values())
    checked = sum(entry["documents_checked"] for entry in lineage.values())
    assert 0.4 * documents < checked < 0.6 * documents
