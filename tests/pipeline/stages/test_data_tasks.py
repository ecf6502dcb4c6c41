"""`drope prepare-data` in tasks, as a job array calls it, and what `drope inspect` shows of the shards."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


def shard_bytes(run: Path) -> dict[str, str]:
    """Digest of shards.json and of every shard of a run."""
    files = [run / "data" / "shards.json", *(run / "data" / "shards").iterdir()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def data_section(raw_recipe) -> dict:
    return raw_recipe["data"] | {"piece_bytes": 20_000}


@pytest.mark.real_processes
def test_tasks_and_a_merge_make_what_one_call_makes(drope, write_recipe, data_section, tmp_path):
    recipe = write_recipe(data=data_section)
    for task in (2, 0, 1):
        done = drope("prepare-data", recipe, "name=tasks", "--task", task, "--of", 3, "--workers", 1)
        assert done.returncode == 0, done.stderr
        assert f"task {task} of 3 is done" in done.stderr
    merged = drope("prepare-data", recipe, "name=tasks", "--merge")
    assert merged.returncode == 0, merged.stderr
    alone = drope("prepare-data", recipe)
    assert alone.returncode == 0, alone.stderr
    runs = tmp_path / "runs"
    assert len(shard_bytes(runs / "tiny")) > 8
    assert shard_bytes(runs / "tasks") == shard_bytes(runs / "tiny")
    again = drope("prepare-data", recipe, "name=tasks", "--task", 0, "--of", 3)
    assert again.returncode == 0 and "data is complete" in again.stderr
    trusted = drope("prepare-data", recipe, "data.backend=reference", "data.workers=2")
    assert trusted.returncode == 0 and "complete, skipped" in trusted.stderr


def test_a_merge_with_a_task_missing_is_refused(drope, write_recipe, data_section, tmp_path):
    recipe = write_recipe(data=data_section)
    early = drope("prepare-data", recipe, "--merge")
    assert early.returncode == 2 and "no task has worked here yet" in early.stderr
    assert drope("prepare-data", recipe, "--task", 1, "--of", 2).returncode == 0
    merged = drope("prepare-data", recipe, "--merge")
    assert merged.returncode == 2
    assert "pieces are not done, the first is 00-documents-000000" in merged.stderr
    other = drope("prepare-data", recipe, "--task", 0, "--of", 2, "data.seed=9")
    assert other.returncode == 2 and "planned with seed 1234, now it is 9" in other.stderr
    assert drope("prepare-data", recipe).returncode == 0
    assert not (tmp_path / "runs" / "tiny" / "data" / "pieces").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--task", 1], "go together"),
        (["--of", 2], "go together"),
        (["--task", 0, "--of", 2, "--merge"], "without --merge"),
        (["--task", 2, "--of", 2], "counted from 0 to 1"),
        (["--workers", 0], "0 is not in the range"),
    ],
)
def test_options_that_make_no_sense_are_refused(drope, write_recipe, tmp_path, options: list, says: str):
    refused = drope("prepare-data", write_recipe(), *options)
    assert refused.returncode == 2 and says in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_rejected_documents_above_the_limit_end_the_stage_and_below_it_are_listed(
    drope, write_recipe, data_section, documents, tmp_path
):
    lines = documents.read_text().splitlines()
    lines[7:7] = ['{"text": null}', '{"text": 5}', '{"no": "text"}']
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(lines))
    section = data_section | {"sources": [{"path": str(bad)}]}
    refused = drope("prepare-data", write_recipe(data=section))
    assert refused.returncode == 2, refused.stderr
    assert re.search(r"3 of \d+ documents rejected .*text is null; all in .*rejected\.jsonl", refused.stderr)
    folder = tmp_path / "runs" / "tiny" / "data"
    allowed = drope("prepare-data", write_recipe(data=section), "data.max_rejected_fraction=0.01")
    assert allowed.returncode == 0, allowed.stderr
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert [entry["documents"] for entry in rejected] == [1, 1, 1]
    assert {entry["file"] for entry in rejected} == {str(bad)}
    (counts,) = json.loads((folder / "manifest.json").read_text())["facts"]["documents"].values()
    assert counts == {"documents": 403, "kept": 400, "empty": 0, "rejected": 3, "surplus": 0}


def test_inspect_shows_statistics_and_rows_and_finds_a_flipped_byte(drope, write_recipe, data_section, tmp_path):
    assert drope("prepare-data", write_recipe(data=data_section)).returncode == 0
    folder = tmp_path / "runs" / "tiny" / "data"
    shown = drope("inspect", folder, "--verify")
    assert shown.returncode == 0, shown.stderr
    assert "400 documents = 400 kept + 0 empty + 0 rejected + 0 surplus" in shown.stdout
    assert "<EOS 1>" in shown.stdout and "row 1: 32 tokens" in shown.stdout
    assert "documents compared with the reference" in shown.stdout
    facts = json.loads(drope("inspect", folder, "--json").stdout)
    assert sum(len(line.split("tokens")) == 2 for line in facts["00-documents lengths"]) >= 2
    (folder / "manifest.json").unlink()  # now it is a folder of shards
    shard = next((folder / "shards").glob("*-000001-train.bin"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(bytes(content))
    inspected = drope("inspect", folder, "--verify")
    assert inspected.returncode == 2
    assert "00-documents-000001-train: its bytes are not those recorded" in inspected.stderr


def test_an_evaluation_that_cannot_work_does_not_cost_the_shards(drope, write_recipe, data_section, tmp_path):
    """Found out when the tokens are counted, after the work."""
    recipe = write_recipe(data=data_section)
    more = ("evaluation.variants=[rope,longrope2]", "evaluation.longrope2.tokens=1000000")
    refused = drope("prepare-data", recipe, *more)
    assert refused.returncode == 2 and "the search of longrope2 takes 1000001 others" in refused.stderr
    inodes = {path.name: path.stat().st_ino for path in (tmp_path / "runs" / "tiny" / "data" / "shards").iterdir()}
    assert len(inodes) > 8
    mended = drope("prepare-data", recipe)
    assert mended.returncode == 0, mended.stderr
    assert {p.name: p.stat().st_ino for p in (tmp_path / "runs" / "tiny" / "data" / "shards").iterdir()} == inodes


def test_the_digest_of_the_stage_does_not_depend_on_who_did_the_work(drope, write_recipe, data_section, tmp_path):
    recipe = write_recipe(data=data_section)
    for name, options in (("one", []), ("two", ["--workers", 1, "data.backend=reference"])):
        assert drope("prepare-data", recipe, f"name={name}", *options).returncode == 0
    digests = {
        json.loads(drope("inspect", tmp_path / "runs" / name / "data", "--json").stdout)["digest"]
        for name in ("one", "two")
    }
    assert len(digests) == 1


def test_a_mistaken_call_beside_tasks_removes_nothing(drope, write_recipe, data_section, tmp_path):
    recipe = write_recipe(data=data_section)
    assert drope("prepare-data", recipe, "--task", 0, "--of", 3).returncode == 0
    folder = tmp_path / "runs" / "tiny" / "data"
    for path in (folder / "shards").iterdir():
        path.unlink()
    before = sorted(path.name for path in (folder / "pieces").iterdir())
    assert drope("prepare-data", recipe, "data.seed=9").returncode == 2
    assert sorted(path.name for path in (folder / "pieces").iterdir()) == before


def test_tasks_that_start_together_do_not_refuse_each_other(write_recipe, data_section, tmp_path):
    recipe = write_recipe(data=data_section)
    command = [sys.executable, "-m", "pipeline.cli", "prepare-data", str(recipe), "--of", "4", "--workers", "1"]
    tasks = [
        subprocess.Popen([*command, "--task", str(number)], stderr=subprocess.PIPE, text=True) for number in range(4)
    ]
    failed = [errors for task in tasks if (errors := task.communicate()[1]) and task.returncode]
    assert not failed
