"""Data sets of the Hub, read by a process of its own from a small Hub on this machine and from the cache it leaves."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.reading import hub as hub_module
from data_prep.reading.pieces import file_pieces
from data_prep.reading.readers import read_piece
from data_prep.reading.sources import source_files
from foundation.errors import DiskError
from tests.hub_server import COMMIT, HubServer

NAME = "org/web"
README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-1
  data_files:
  - split: train
    path: sample/*.parquet
  - split: held
    path: sample/held/*.jsonl.gz
- config_name: tables
  data_files: tables/*.csv
---
# A data set
"""
URL = f"hf://datasets/{NAME}@{COMMIT}"

CLIENT = """
import json, sys
from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.reading.files import local_path
from data_prep.reading.pieces import file_pieces
from data_prep.reading.readers import read_piece
from data_prep.reading.sources import check_source, source_files

def answer(read, **options):
    try:
        source = SourceConfig(**options)
        files = source_files(source)
        facts = {"files": [file.url for file in files], "cached": [local_path(file.url) is not None for file in files]}
        facts |= {"sizes": [file.size for file in files], "marks": sorted({file.mark for file in files})}
        if read:
            check_source(source)
            batches = [
                batch
                for file in files
                for piece in file_pieces(file, source, 2000)
                for batch in read_piece(file, source, piece, 10**6)
            ]
            facts["texts"] = [text for batch in batches for text in batch.texts]
            facts["rejected"] = [rejection.reason for batch in batches for rejection in batch.rejected]
        return facts
    except (DataError, ConnectionError) as error:
        return {"error": type(error).__name__, "says": str(error)}

print(json.dumps([answer(**question) for question in json.loads(sys.argv[1])]))
"""


@pytest.fixture
def hub(tmp_path: Path, stories: list[str], write_fineweb, write_jsonl) -> Iterator[HubServer]:
    first = write_fineweb(tmp_path / "a.parquet", stories[:60], row_group_size=10).read_bytes()
    second = write_fineweb(tmp_path / "b.parquet", stories[60:100], row_group_size=10).read_bytes()
    held = write_jsonl(tmp_path / "c.jsonl.gz", stories[100:110]).read_bytes()
    files = {
        "README.md": README.encode(),
        "data/2024/x.parquet": first,
        "sample/000.parquet": first,
        "sample/001.parquet": second,
        "sample/held/a.jsonl.gz": held,
        "tables/a.csv": b"text\na\n",
    }
    server = HubServer(NAME, files)
    yield server
    server.stop()


def environment(tmp_path: Path, hub: HubServer, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}
    return kept | own | {"HF_HUB_DISABLE_XET": "1"} | more


def ask(environment: dict[str, str], *questions: dict[str, object]) -> list[dict]:
    arguments = [sys.executable, "-c", CLIENT, json.dumps([{"read": False, **question} for question in questions])]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def snapshot(environment: dict[str, str], **options: object) -> None:
    script = "import json, sys, huggingface_hub\nhuggingface_hub.snapshot_download(**json.loads(sys.argv[1]))"
    arguments = json.dumps({"repo_id": NAME, "repo_type": "dataset", "revision": COMMIT, **options})
    subprocess.run([sys.executable, "-c", script, arguments], env=environment, check=True, capture_output=True)


PINNED = {"hub": NAME, "revision": COMMIT}
SAMPLE = {**PINNED, "hub_config": "sample-1"}


def test_files_of_a_configuration_and_split_are_streamed_in_parts(hub: HubServer, tmp_path: Path, stories: list[str]):
    sample, held, default = ask(
        environment(tmp_path, hub),
        {**SAMPLE, "read": True},
        {**SAMPLE, "hub_split": "held", "read": True},
        PINNED,
    )
    assert sample["files"] == [f"{URL}/sample/000.parquet", f"{URL}/sample/001.parquet"]
    assert sample["sizes"] == [len(hub.files[f"sample/00{number}.parquet"]) for number in (0, 1)]
    assert sample["marks"] == [COMMIT] and sample["cached"] == [False, False]
    assert sample["texts"] == stories[:100] and sample["rejected"] == []
    assert held["files"] == [f"{URL}/sample/held/a.jsonl.gz"] and held["texts"] == stories[100:110]
    assert default["files"] == [f"{URL}/data/2024/x.parquet"]
    reads = [request for request in hub.requests if "sample/000.parquet" in request]
    assert reads and all("bytes=" in request for request in reads)  # never as a whole


def test_a_cached_data_set_needs_no_network(hub: HubServer, tmp_path: Path, stories: list[str]):
    online = environment(tmp_path, hub)
    (streamed,) = ask(online, SAMPLE)
    snapshot(online)
    asked = len(hub.requests)
    (cached,) = ask(online, {**SAMPLE, "read": True})
    assert len(hub.requests) == asked
    hub.stop()
    offline = {key: value for key, value in online.items() if key != "HF_ENDPOINT"} | {"HF_HUB_OFFLINE": "1"}
    (alone, held) = ask(offline, {**SAMPLE, "read": True}, {**SAMPLE, "hub_split": "held", "read": True})
    for answer in (cached, alone):
        assert answer["files"] == streamed["files"] and answer["sizes"] == streamed["sizes"]
        assert answer["marks"] == streamed["marks"]
        assert answer["texts"] == stories[:100] and answer["cached"] == [True, True]
    assert held["texts"] == stories[100:110]


def test_a_part_of_the_cache_is_used_and_the_rest_streamed(hub: HubServer, tmp_path: Path, stories: list[str]):
    online = environment(tmp_path, hub)
    snapshot(online, allow_patterns=["README.md", "sample/000.parquet"])
    (answer,) = ask(online, {**SAMPLE, "read": True})
    assert answer["cached"] == [True, False] and answer["texts"] == stories[:100]
    (refused,) = ask(online | {"HF_HUB_OFFLINE": "1"}, SAMPLE)
    assert refused["error"] == "DataError"
    assert "1 of 2 files are not in the Hub cache, sample/001.parquet first" in refused["says"]
    assert f"hf download {NAME} --repo-type dataset --revision {COMMIT}" in refused["says"]


def test_a_moving_revision_is_refused_with_the_commit_it_stands_at(hub: HubServer, tmp_path: Path):
    online = environment(tmp_path, hub)
    missing, branch, tag, unknown = ask(
        online,
        {"hub": NAME},
        {"hub": NAME, "revision": "main"},
        {"hub": NAME, "revision": "v1"},
        {"hub": NAME, "revision": "nowhere"},
    )
    assert f"revision: main moves; pin it: revision: {COMMIT}" in missing["says"]
    assert branch["says"] == missing["says"]
    assert f"revision: v1 moves; pin it: revision: {COMMIT}" in tag["says"]
    assert "no revision nowhere" in unknown["says"]
    (bare,) = ask(online | {"HF_HUB_OFFLINE": "1"}, {"hub": NAME})
    assert "main moves; pin it: set revision to a commit of 40" in bare["says"]
    snapshot(online, revision="main")
    (known,) = ask(online | {"HF_HUB_OFFLINE": "1"}, {"hub": NAME})
    assert f"pin it: revision: {COMMIT}" in known["says"]


def test_what_cannot_be_had_is_one_clear_line(hub: HubServer, tmp_path: Path):
    wrong_commit = {"hub": NAME, "revision": "f" * 40}
    answers = ask(
        environment(tmp_path, hub),
        {**PINNED, "hub_config": "sample-2"},
        {**SAMPLE, "hub_split": "test"},
        {**PINNED, "hub_config": "tables"},
        {"hub": "gated/set", "revision": COMMIT},
        {"hub": "no/set", "revision": COMMIT},
        {"hub": "not a name", "revision": COMMIT},
        wrong_commit,
    )
    assert [answer["error"] for answer in answers] == ["DataError"] * 7
    assert all("\n" not in answer["says"] for answer in answers)
    config, split, tables, gated, missing, name, commit = (answer["says"] for answer in answers)
    assert "no hub_config 'sample-2'; there are default, sample-1, tables; nearest: sample-1" in config
    assert "no hub_split 'test'; there are train, held" in split
    assert "tables/a.csv: its suffix tells no format" in tables
    assert "is gated" in gated and "hf auth login" in gated
    assert "no such data set" in missing
    assert "not the name of a data set" in name
    assert "no revision ffff" in commit


@pytest.mark.long
@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_no_bad_input_and_no_bad_document(
    hub: HubServer, tmp_path: Path, stories: list[str]
):
    """Its client tries again by itself, for some seconds."""
    online = environment(tmp_path, hub)
    hub.failing = 2
    (answer,) = ask(online, {**SAMPLE, "read": True})
    assert "error" not in answer, answer
    assert answer["texts"] == stories[:100] and hub.failing == 0
    hub.failing = 10**6
    (failed,) = ask(online, {**SAMPLE, "hub_split": "held", "read": True})
    assert failed["error"] == "ConnectionError"
    hub.stop()
    (gone,) = ask(online, SAMPLE)
    assert gone["error"] == "ConnectionError" and f"hub:{NAME}/sample-1/train: cannot be read now (" in gone["says"]


def test_a_file_behind_a_plain_url_is_read_in_parts(hub: HubServer, stories: list[str]):
    source = SourceConfig(path=f"{hub.url}/datasets/{NAME}/resolve/{COMMIT}/sample/000.parquet")
    (file,) = source_files(source)
    assert file.size == len(hub.files["sample/000.parquet"])
    file.refuse_changed()
    pieces = file_pieces(file, source, 2000)
    batches = [batch for piece in pieces for batch in read_piece(file, source, piece, 10**6)]
    assert [text for batch in batches for text in batch.texts] == stories[:60] and len(pieces) > 1
    hub.files["sample/000.parquet"] = hub.files["sample/001.parquet"]
    with pytest.raises(DataError, match="has changed"):
        file.refuse_changed()


def test_a_disk_that_fills_while_files_are_brought_is_no_silent_hub(monkeypatch: pytest.MonkeyPatch):
    def fill(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hub_module, "_files", lambda hub: [])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fill)
    with pytest.raises(DiskError, match="the disk is full; make room, or set HF_HOME to another disk"):
        hub_module.fetch_files(SourceConfig(**SAMPLE))


def test_offline_without_a_cache_says_what_to_fetch(hub: HubServer, tmp_path: Path):
    (refused,) = ask(environment(tmp_path, hub, HF_HUB_OFFLINE="1"), SAMPLE)
    assert "offline, and the Hub cache has no list of its files; run `hf download" in refused["says"]
    assert hub.requests == []
