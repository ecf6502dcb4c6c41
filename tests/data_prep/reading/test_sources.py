import json
import os
from pathlib import Path

import fsspec
import pytest

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.reading.files import SourceFile
from data_prep.reading.sources import check_source, source_files


def files(path: Path | str, **options: str) -> tuple[SourceFile, ...]:
    return source_files(SourceConfig(path=str(path), **options))


@pytest.fixture
def memory():
    """A remote file system that lives in this process."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def test_folders_and_globs_are_sorted(tmp_path: Path, write_jsonl):
    (tmp_path / "below").mkdir()
    for name in ("b.jsonl", "a.jsonl.gz", "below/c.jsonl", ".hidden.jsonl"):
        write_jsonl(tmp_path / name, [name])
    (tmp_path / "notes.md").write_text("not documents")

    def names(path: Path, **options: str) -> list[str]:
        return [os.path.relpath(file.url, tmp_path) for file in files(path, **options)]

    assert names(tmp_path) == ["a.jsonl.gz", "b.jsonl", "below/c.jsonl"]
    assert names(tmp_path / "*.jsonl") == ["b.jsonl"]
    assert names(tmp_path / "**" / "*.jsonl") == ["b.jsonl", "below/c.jsonl"]
    assert names(tmp_path / "notes.md", format="text") == ["notes.md"]
    assert files(f"file://{tmp_path}") == files(tmp_path)


def test_suffixes_tell_format_and_compression(tmp_path: Path):
    for name in ("a.jsonl", "a.json.gz", "a.ndjson", "a.jsonl.zst", "a.parquet", "a.txt", "a.txt.gz"):
        (tmp_path / name).write_bytes(b"12345")
    by_name = {Path(file.url).name: file for name in os.listdir(tmp_path) for file in files(tmp_path / name)}
    kinds = {name: (file.format, file.compression) for name, file in by_name.items()}
    assert kinds == {
        "a.jsonl": ("jsonl", None),
        "a.json.gz": ("jsonl", "gz"),
        "a.ndjson": ("jsonl", None),
        "a.jsonl.zst": ("jsonl", "zst"),
        "a.parquet": ("parquet", None),
        "a.txt": ("text", None),
        "a.txt.gz": ("text", "gz"),
    }
    assert {file.size for file in by_name.values()} == {5}


def test_no_file_is_opened(tmp_path: Path):
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")  # opening one would wait for ever
    assert [Path(file.url).name for file in files(tmp_path)] == ["gone.jsonl", "pipe.jsonl"]


def test_a_changed_or_missing_file_is_refused(tmp_path: Path, write_jsonl):
    (file,) = files(write_jsonl(tmp_path / "a.jsonl", ["a"]))
    file.refuse_changed()
    os.utime(file.url, ns=(1, 1))
    with pytest.raises(DataError, match=r"a\.jsonl: has changed since"):
        file.refuse_changed()
    os.remove(file.url)
    with pytest.raises(DataError, match=r"a\.jsonl: is gone since"):
        file.refuse_changed()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere.jsonl", "no such file, and no file matches it as a glob"),
        ("*.jsonl", "no such file, and no file matches it as a glob"),
        ("empty", "has no .jsonl/.json/.ndjson/.parquet/.txt file"),
        ("mixed", "several formats"),
        ("a.csv", "its suffix tells no format"),
        ("a.parquet.gz", "decompress it"),
    ],
)
def test_missing_and_unclear_sources(tmp_path: Path, path: str, says: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.txt").write_text("a")
    (tmp_path / "mixed" / "a.jsonl").write_text("{}")
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(DataError, match=says) as caught:
        files(tmp_path / path)
    assert "\n" not in str(caught.value)


def test_remote_files_are_listed_with_size_and_mark(memory):
    memory.pipe({"/set/b.jsonl": b"123", "/set/below/a.jsonl.gz": b"12", "/set/.hidden.jsonl": b"", "/set/c.md": b""})
    listed = files("memory://set")
    assert [(file.url, file.size, file.compression) for file in listed] == [
        ("memory:///set/b.jsonl", 3, None),
        ("memory:///set/below/a.jsonl.gz", 2, "gz"),
    ]
    assert files("memory://set/b*.jsonl") == listed[:1]
    assert files("memory://set/b.jsonl") == listed[:1]
    listed[0].refuse_changed()
    memory.pipe("/set/b.jsonl", b"456")
    with pytest.raises(DataError, match="has changed"):
        listed[0].refuse_changed()
    memory.rm("/set/b.jsonl")
    with pytest.raises(DataError, match="is gone"):
        listed[0].refuse_changed()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("memory://nowhere/a.jsonl", "no such file, and no file matches"),
        ("memory://nowhere/*.jsonl", "no such file, and no file matches"),
        ("quux://bucket/a.jsonl", "Protocol not known: quux"),
        ("hf://datasets/a/b/c.parquet", "name a data set of the Hub with hub"),
    ],
)
def test_remote_places_that_cannot_be_listed(memory, path: str, says: str):
    with pytest.raises(DataError, match=says):
        files(path)


def test_a_server_that_does_not_answer_is_no_bad_input():
    with pytest.raises(ConnectionError, match=r"^http://127\.0\.0\.1:9/a\.jsonl: cannot be read now \("):
        files("http://127.0.0.1:9/a.jsonl")


def test_missing_column_names_the_columns_and_the_nearest(tmp_path: Path, write_jsonl, write_fineweb):
    jsonl = write_jsonl(tmp_path / "a.jsonl", ["a"], key="content")
    with pytest.raises(DataError, match=r"a\.jsonl: no column 'text'; it has content, id; nearest: content"):
        check_source(SourceConfig(path=str(jsonl)))
    parquet = write_fineweb(tmp_path / "a.parquet", ["a"])
    with pytest.raises(DataError, match=r"no column 'langauge'; it has text, id, .*; nearest: language"):
        check_source(SourceConfig(path=str(parquet), text_column="langauge"))
    with pytest.raises(DataError, match="column 'token_count' is int64, not a string"):
        check_source(SourceConfig(path=str(parquet), text_column="token_count"))


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_the_first_the_middle_and_the_last_file_are_looked_into(tmp_path: Path, write_jsonl, bad: int):
    for number in range(3):
        write_jsonl(tmp_path / f"{number}.jsonl.zst", ["a"], key="body" if number == bad else "text")
    with pytest.raises(DataError, match=rf"{bad}\.jsonl\.zst: no column 'text'"):
        check_source(SourceConfig(path=str(tmp_path)))


def test_bad_records_and_files_are_no_reason_to_refuse_a_source(tmp_path: Path):
    lines = ["", "no json", "[1]", json.dumps({"id": 1}), json.dumps({"text": None})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c.jsonl").write_bytes(b"")
    check_source(SourceConfig(path=str(tmp_path)))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no footer")
    check_source(SourceConfig(path=str(tmp_path / "a.parquet")))


def test_a_json_array_is_told_from_json_lines(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}], indent=1))
    with pytest.raises(DataError, match=r"a\.json: is a JSON array; write one JSON object on each line"):
        check_source(SourceConfig(path=str(tmp_path / "a.json")))
