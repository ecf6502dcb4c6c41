import gzip
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.sources import check_source, documents, source_files


def read(path: Path | str, **options: str) -> list[str]:
    return list(documents(SourceConfig(path=str(path), **options)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a [1] * x.jsonl"])
def test_jsonl(tmp_path: Path, stories: list[str], write_jsonl, name: str):
    texts = [*stories, "", "nul \x00 é 😀 漢字 \u2028", "2020-01-01"]
    assert read(write_jsonl(tmp_path / name, texts)) == texts


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_text_units(tmp_path: Path, stories: list[str], write_text, name: str):
    texts = [" ".join(story.split()) for story in stories]
    path = write_text(tmp_path / name, texts)
    assert read(path) == texts
    assert read(path, text_unit="file") == ["\n\n".join(texts)]
    assert read(path, text_unit="line") == "\n\n".join(texts).split("\n")


def test_parquet_with_the_fineweb_schema(tmp_path: Path, stories: list[str], write_fineweb):
    path = write_fineweb(tmp_path / "a.parquet", stories)
    assert read(path) == stories
    assert read(path, text_column="url")[:2] == ["https://example.org/0", "https://example.org/1"]


def test_long_multi_frame_zstd_is_read_to_its_end(tmp_path: Path):
    frames = [b"".join(os.urandom(40).hex().encode() + b"\n" for _ in range(20_000)) for _ in range(3)]
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"".join(map(zstandard.compress, frames)) + b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip")
    assert read(path, text_unit="line") == b"".join(frames).decode().splitlines()


def test_folders_and_globs_are_sorted(tmp_path: Path, write_jsonl):
    (tmp_path / "below").mkdir()
    for name in ("b.jsonl", "a.jsonl.gz", "below/c.jsonl", ".hidden.jsonl"):
        write_jsonl(tmp_path / name, [name])
    (tmp_path / "notes.md").write_text("not documents")
    assert read(tmp_path) == ["a.jsonl.gz", "b.jsonl", "below/c.jsonl"]
    assert read(tmp_path / "*.jsonl") == ["b.jsonl"]
    assert read(tmp_path / "**" / "*.jsonl") == ["b.jsonl", "below/c.jsonl"]
    assert read(tmp_path / "notes.md", format="text") == ["not documents"]


def test_a_file_without_rows_has_no_documents(tmp_path: Path, write_fineweb):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    write_fineweb(tmp_path / "a.parquet", [])
    for name in ("a.jsonl", "a.txt", "a.jsonl.gz", "a.parquet"):
        assert [text for text in read(tmp_path / name) if text] == [], name


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere.jsonl", "no such file"),
        ("*.jsonl", "no file matches"),
        ("empty", "has no .jsonl/.json/.parquet/.txt file"),
        ("mixed", "several formats"),
        ("a.csv", "its suffix tells no format"),
    ],
)
def test_missing_and_unclear_sources(tmp_path: Path, path: str, says: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.txt").write_text("a")
    (tmp_path / "mixed" / "a.jsonl").write_text("{}")
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=says):
        source_files(SourceConfig(path=str(tmp_path / path)))


def test_missing_column_names_the_columns_and_the_nearest(tmp_path: Path, write_jsonl, write_fineweb):
    jsonl = write_jsonl(tmp_path / "a.jsonl", ["a"], key="content")
    with pytest.raises(DataError, match=r"a\.jsonl: no column 'text'; it has content, id; nearest: content"):
        check_source(SourceConfig(path=str(jsonl)))
    parquet = write_fineweb(tmp_path / "a.parquet", ["a"])
    with pytest.raises(DataError, match=r"no column 'langauge'; it has text, id, .*; nearest: language"):
        check_source(SourceConfig(path=str(parquet), text_column="langauge"))


def _write_damaged(folder: Path, texts: list[str], write_jsonl, write_text, write_fineweb) -> None:
    random = os.urandom(20_000)
    gz = write_jsonl(folder / "whole.jsonl.gz", texts).read_bytes()
    (folder / "cut.jsonl.gz").write_bytes(gz[: len(gz) // 2])
    lines = "\n".join(os.urandom(30).hex() for _ in range(20_000))
    zst = write_text(folder / "whole.txt.zst", [lines]).read_bytes()
    (folder / "cut.txt.zst").write_bytes(zst[: len(zst) // 2])
    (folder / "damaged.txt.zst").write_bytes(random)
    (folder / "damaged.jsonl.gz").write_bytes(b"\x1f\x8b" + random)
    (folder / "cut.jsonl").write_bytes(write_jsonl(folder / "whole.jsonl", texts).read_bytes()[:-20])
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    parquet = write_fineweb(folder / "whole.parquet", texts).read_bytes()
    (folder / "cut.parquet").write_bytes(parquet[: len(parquet) // 2])
    (folder / "page.parquet").write_bytes(parquet[:1000] + random + parquet[1000 + len(random) :])


@pytest.mark.parametrize(
    "name",
    [
        "cut.jsonl.gz",
        "cut.txt.zst",
        "damaged.txt.zst",
        "damaged.jsonl.gz",
        "cut.jsonl",
        "latin.txt",
        "cut.parquet",
        "page.parquet",
    ],
)
def test_damaged_files_are_named(tmp_path: Path, stories: list[str], write_jsonl, write_text, write_fineweb, name: str):
    _write_damaged(tmp_path, stories, write_jsonl, write_text, write_fineweb)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_null_and_other_types_are_refused_with_their_place(tmp_path: Path, write_jsonl, write_fineweb):
    jsonl = write_jsonl(tmp_path / "a.jsonl", ["a", None, "b"])
    with pytest.raises(DataError, match=r"a\.jsonl: document 2: text is null"):
        read(jsonl)
    parquet = write_fineweb(tmp_path / "a.parquet", ["a", "b", None])
    with pytest.raises(DataError, match=r"a\.parquet: document 3: text is null"):
        read(parquet)
    with pytest.raises(DataError, match="document 1: token_count is int, not a string"):
        read(parquet, text_column="token_count")


def test_only_the_text_column_of_parquet_is_read(tmp_path: Path):
    """A damaged other column does no harm, since its pages are never touched."""
    path = tmp_path / "a.parquet"
    noise = [os.urandom(500).hex() for _ in range(50)]
    table = pyarrow.table({"text": [f"story {i}" for i in range(50)], "noise": noise})
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    at = content.index(noise[0].encode())
    path.write_bytes(content[: at - 40] + b"\xff" * 40 + content[at:])
    assert read(path) == table["text"].to_pylist()
    with pytest.raises(DataError):
        read(path, text_column="noise")
