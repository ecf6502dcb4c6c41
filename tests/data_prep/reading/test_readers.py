import bz2
import errno
import functools
import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem

from data_prep.config import SourceConfig
from data_prep.reading.files import SourceFile
from data_prep.reading.pieces import Piece, file_pieces
from data_prep.reading.readers import Records, Rejection, read_piece
from data_prep.reading.sources import source_files

WHOLE = 2**60
LIMIT = 10_000_000
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def records(path: Path | str, piece_bytes: int = WHOLE, limit: int = LIMIT, **options: str) -> Iterator[Records]:
    source = SourceConfig(path=str(path), **options)
    for file in source_files(source):
        for piece in file_pieces(file, source, piece_bytes):
            yield from read_piece(file, source, piece, limit)


def read(path: Path | str, piece_bytes: int = WHOLE, limit: int = LIMIT, **options: str) -> list[str]:
    """The documents of all pieces, none of which may be rejected."""
    batches = list(records(path, piece_bytes, limit, **options))
    assert [rejection for batch in batches for rejection in batch.rejected] == []
    return [text for batch in batches for text in batch.texts]


def read_bad(
    path: Path | str, piece_bytes: int = WHOLE, limit: int = LIMIT, **options: str
) -> tuple[list[str], list[Rejection]]:
    batches = list(records(path, piece_bytes, limit, **options))
    rejected = [rejection for batch in batches for rejection in batch.rejected]
    assert all("\n" not in rejection.reason and rejection.file for rejection in rejected)
    return [text for batch in batches for text in batch.texts], rejected


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a [1] * x.jsonl"])
def test_jsonl(tmp_path: Path, stories: list[str], write_jsonl, name: str):
    texts = [*stories, "", "nul \x00 é 😀 漢字 \u2028", "2020-01-01"]
    assert read(write_jsonl(tmp_path / name, texts)) == texts


def test_jsonl_that_others_write(tmp_path: Path):
    lines = ['\ufeff{"text": "a", "score": NaN}', "", "  ", '{"text": "b", "id": 123456789012345678901234567890}\r']
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"text": "c"}']))
    for piece_bytes in (1, 7, WHOLE):
        assert read(tmp_path / "a.jsonl", piece_bytes) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_text_units(tmp_path: Path, stories: list[str], write_text, name: str):
    texts = [" ".join(story.split()) for story in stories]
    path = write_text(tmp_path / name, texts)
    assert read(path) == texts
    assert read(path, text_unit="file") == ["\n\n".join(texts)]
    assert read(path, text_unit="line") == "\n\n".join(texts).split("\n")


def lines_of(text: str) -> list[str]:
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def paragraphs_of(text: str) -> list[str]:
    """Runs of lines that are not empty, line by line: another way than the reader's."""
    paragraphs: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line in ("", "\r"):
            paragraphs.append([])
        else:
            paragraphs[-1].append(line)
    return ["\n".join(lines).removesuffix("\r") for lines in paragraphs if lines]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(("unit", "units_of"), [("line", lines_of), ("paragraph", paragraphs_of)])
def test_pieces_of_any_size_hold_every_unit_once(tmp_path: Path, suffix: str, unit: str, units_of):
    draw = random.Random(0)
    parts = ["a", "é", "😀", " ", "\n", "\n", "\r\n", "\n\n", "\r\n\r\n", "\n\n\n"]
    path = tmp_path / f"a.txt{suffix}"
    for _ in range(150):
        text = "".join(draw.choice(parts) for _ in range(draw.randint(1, 25)))
        path.write_bytes(COMPRESS[suffix](text.encode()))
        for piece_bytes in (1, 2, 3, 5, 8, 1000):
            assert read(path, piece_bytes, text_unit=unit) == units_of(text), (text, piece_bytes)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_pieces_of_any_size_hold_every_record_once(tmp_path: Path, stories: list[str], write_jsonl, suffix: str):
    texts = ["", "é", *stories[:40], "😀" * 50]
    path = write_jsonl(tmp_path / f"a.jsonl{suffix}", texts)
    for piece_bytes in (1, 10, 97, 1000, 5000, WHOLE):
        assert read(path, piece_bytes) == texts


def test_units_longer_than_a_block_are_read_whole(tmp_path: Path):
    """Blocks are 1 MiB; separators lie across their ends."""
    texts = ["x" * (2**20 - 1), "y" * (2**20 - 1), "z" * 3_000_000, "é" * 2**19, "w"]
    for separator, unit in (("\n", "line"), ("\n\n", "paragraph"), ("\r\n\r\n", "paragraph")):
        (tmp_path / "a.txt").write_bytes(separator.join(texts).encode())
        for piece_bytes in (500_000, 2**20, WHOLE):
            assert read(tmp_path / "a.txt", piece_bytes, text_unit=unit) == texts


def test_positions_tell_where_a_document_begins(tmp_path: Path, stories: list[str], write_jsonl, write_fineweb):
    path = write_jsonl(tmp_path / "a.jsonl", stories)
    content = path.read_bytes()
    positions = [position for batch in records(path, 3000) for position in batch.positions]
    assert [json.loads(content[position:].split(b"\n")[0])["text"] for position in positions] == stories
    path = write_fineweb(tmp_path / "a.parquet", stories)
    positions = [position for batch in records(path, 3000) for position in batch.positions]
    assert positions == list(range(len(stories)))


def test_batches_are_small(tmp_path: Path, write_jsonl, write_fineweb):
    many = [str(number) for number in range(3000)]
    for path in (write_jsonl(tmp_path / "a.jsonl", many), write_fineweb(tmp_path / "a.parquet", many)):
        assert max(len(batch.texts) for batch in records(path)) <= 1024
    long = ["x" * 500_000] * 20
    for path in (write_jsonl(tmp_path / "b.jsonl", long), write_fineweb(tmp_path / "b.parquet", long)):
        assert max(len(batch.texts) for batch in records(path)) <= 5


def test_a_file_without_rows_has_no_documents(tmp_path: Path, write_fineweb):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b""))
    write_fineweb(tmp_path / "a.parquet", [])
    for name in ("a.jsonl", "a.txt", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        assert read(tmp_path / name) == [], name


BAD_LINES = [
    (b'{"text": "a"', "not JSON"),
    (b"[1, 2]", "not a JSON object, but an array"),
    (b'"a"', "not a JSON object, but a string"),
    (b'{"body": "a"}', "no column 'text'"),
    (b'{"text": null}', "text is null"),
    (b'{"text": 3}', "text is a number, not a string"),
    (b'{"text": ["a"]}', "text is an array, not a string"),
    (b'{"text": "caf\xe9"}', "invalid UTF-8"),
    (b'{"text": "\\ud800"}', "lone surrogate"),
    (b"[" * 100_000, "not JSON"),
    (b'{"text": "' + b"x" * 1001 + b'"}', "1,001 bytes long, over max_document_bytes (1,000)"),
]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_a_bad_line_is_rejected_and_the_others_are_kept(tmp_path: Path, suffix: str, line: bytes, reason: str):
    content = b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n'
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](content))
    for piece_bytes in (1000, WHOLE):
        texts, (rejection,) = read_bad(path, piece_bytes, limit=1000)
        assert texts == ["before", "after"]
        assert reason in rejection.reason and rejection.position == "byte 19" and rejection.documents == 1
        assert rejection.file == str(path)


def test_escapes_do_not_count_towards_the_length(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + rb"\u00e9" * 500 + b'"}\n')
    assert read(tmp_path / "a.jsonl", limit=1000) == ["é" * 500]
    assert read_bad(tmp_path / "a.jsonl", limit=999)[0] == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.txt.gz"])
def test_an_endless_document_is_passed_over_in_little_memory(tmp_path: Path, name: str):
    """400 MB in one line; the process may take 150 MB more than Python with the reader's libraries takes."""
    path = tmp_path / name
    opener = {".gz": functools.partial(gzip.open, compresslevel=1), ".zst": zstandard.open}.get(path.suffix, open)
    ending = (b'"}\n{"text": "after"}\n') if "jsonl" in name else b"\n\nafter"
    with opener(path, "wb") as stream:
        stream.write(b'{"text": "')
        for _ in range(100):
            stream.write(b"x" * 4_000_000)
        stream.write(ending)
    script = f"""
import orjson, pydantic, pyarrow.parquet, resource
from data_prep.config import SourceConfig
from data_prep.reading.pieces import Piece
from data_prep.reading.readers import read_piece
from data_prep.reading.sources import source_files
source = SourceConfig(path={str(path)!r})
(file,) = source_files(source)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batches = list(read_piece(file, source, Piece(start=0, stop=None, text_bytes=0), 100_000))
assert [text for batch in batches for text in batch.texts] == ["after"]
(rejection,) = [rejection for batch in batches for rejection in batch.rejected]
assert "max_document_bytes (100,000)" in rejection.reason and rejection.bytes >= 400_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150


def test_text_that_is_not_utf8_is_rejected_alone(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n\nb\n\nc")
    for piece_bytes in (1, WHOLE):
        texts, (rejection,) = read_bad(tmp_path / "a.txt", piece_bytes)
        assert texts == ["b", "c"] and "invalid UTF-8" in rejection.reason and rejection.bytes == 4
    texts, (rejection,) = read_bad(tmp_path / "a.txt", text_unit="file")
    assert texts == [] and "invalid UTF-8" in rejection.reason


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_long_text_is_rejected(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"a\n\n" + b"x" * 1001 + b"\n\nb"))
    texts, (rejection,) = read_bad(path, limit=1000)
    assert texts == ["a", "b"] and rejection.reason.startswith("1,001 bytes long") and rejection.position == "byte 3"
    texts, (rejection,) = read_bad(path, limit=1000, text_unit="file")
    assert texts == [] and rejection.reason.startswith("1,007 bytes long")
    assert read(path, limit=1001, text_unit="line")[2] == "x" * 1001


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_members_are_read_to_the_last(tmp_path: Path, suffix: str):
    parts = [b"".join(os.urandom(40).hex().encode() + b"\n" for _ in range(20_000)) for _ in range(3)]
    padding = b"\0" * 100 if suffix == ".gz" else b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"".join(map(COMPRESS[suffix], [*parts, b""])) + padding)
    assert read(path, 10**6, text_unit="line") == b"".join(parts).decode().splitlines()


def compress_checked(suffix: str, content: bytes) -> bytes:
    """With a checksum: zstd writes none unless told to."""
    return (
        gzip.compress(content) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(content)
    )


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("members", [1, 4])
def test_a_damaged_stream_is_kept_up_to_the_place_and_rejected_once(
    tmp_path: Path, suffix: str, members: int, cut: bool
):
    draw = random.Random(0)
    lines = [draw.randbytes(draw.randrange(5, 400)).hex() for _ in range(2000)]
    share = len(lines) // members
    blocks = ["".join(f"{line}\n" for line in lines[at : at + share]) for at in range(0, len(lines), share)]
    packed = [compress_checked(suffix, block.encode()) for block in blocks]
    whole = b"".join(packed)
    path = tmp_path / f"a.txt{suffix}"
    for _ in range(8):
        at = draw.randrange(1, len(whole) - 30)
        path.write_bytes(whole[:at] if cut else whole[:at] + draw.randbytes(30) + whole[at + 30 :])
        sound = next(number for number in range(members) if sum(map(len, packed[: number + 1])) > at) * share
        kept = None
        for piece_bytes in (3 * len(whole) // 16, len(whole), WHOLE):
            texts, rejected = read_bad(path, piece_bytes, text_unit="line")
            texts += [rejection.reason for rejection in rejected if "UTF-8" in rejection.reason]
            assert kept is None or texts == kept  # whatever the pieces are
            kept = texts
            (rejection,) = (rejection for rejection in rejected if "UTF-8" not in rejection.reason)
            if cut:
                assert texts == lines[: len(texts)] and "cut short" in rejection.reason and rejection.bytes is None
            else:
                assert texts[:sound] == lines[:sound] and "damaged" in rejection.reason
                assert 0 <= rejection.bytes <= len(whole) - at + 64 * 1024


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_stream_loses_no_document_before_the_cut(tmp_path: Path, suffix: str):
    """All that the bytes hold is read: at least as many lines as a plain decompressor gives."""
    lines = [os.urandom(100).hex() for _ in range(3000)]
    whole = COMPRESS[suffix]("".join(f"{line}\n" for line in lines).encode())
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(whole[: 2 * len(whole) // 3])
    texts, (rejection,) = read_bad(path, text_unit="line")
    assert len(lines) / 2 < len(texts) < len(lines) and rejection.position == f"byte {201 * len(texts)}"
    texts, (rejection,) = read_bad(path, text_unit="file")
    assert texts == [] and "cut short" in rejection.reason


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.zst"])
def test_another_format_than_the_suffix_says(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(bz2.compress(b"a" * 1000))
    texts, (rejection,) = read_bad(path)
    assert texts == [] and "damaged" in rejection.reason and rejection.bytes == path.stat().st_size


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.string_view()])
@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_parquet_types(tmp_path: Path, stories: list[str], kind: pyarrow.DataType, compression: str):
    texts = [*stories, "", "nul \x00 é 😀 漢字"]
    path = tmp_path / "a.parquet"
    column = pyarrow.array([text.encode() for text in texts], pyarrow.binary()).cast(kind)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, row_group_size=50, compression=compression)
    assert read(path, 1000) == texts
    dictionary = pyarrow.array(texts).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": dictionary}), path, row_group_size=50)
    assert read(path) == texts


def test_parquet_with_the_fineweb_schema(tmp_path: Path, stories: list[str], write_fineweb):
    path = write_fineweb(tmp_path / "a.parquet", stories)
    for piece_bytes in (1, 10_000, WHOLE):
        assert read(path, piece_bytes) == stories
    assert read(path, text_column="url")[:2] == ["https://example.org/0", "https://example.org/1"]


def test_bad_parquet_rows_are_rejected_alone(tmp_path: Path):
    values = [b"a", None, b"caf\xe9", b"d" * 1001, "é".encode() * 500, b"f"]
    buffers = pyarrow.array(values, pyarrow.binary()).buffers()
    texts = pyarrow.StringArray.from_buffers(len(values), buffers[1], buffers[2], buffers[0])
    for column in (texts, pyarrow.array(values, pyarrow.binary())):
        path = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, row_group_size=4)
        kept, rejected = read_bad(path, limit=1000)
        assert kept == ["a", "é" * 500, "f"]
        assert [rejection.position for rejection in rejected] == [f"row {row} (row group 0)" for row in (1, 2, 3)]
        reasons = [rejection.reason for rejection in rejected]
        assert reasons[0] == "text is null" and "invalid UTF-8" in reasons[1] and "1,001 bytes long" in reasons[2]


@pytest.mark.parametrize("checksum", [True, False])
def test_a_damaged_page_loses_the_rest_of_its_row_group_only(
    tmp_path: Path, stories: list[str], write_fineweb, checksum: bool
):
    path = write_fineweb(tmp_path / "a.parquet", stories, write_page_checksum=checksum, use_dictionary=False)
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0)
    content = bytearray(path.read_bytes())
    at = column.data_page_offset + column.total_compressed_size // 2
    content[at : at + 60] = b"\xff" * 60
    path.write_bytes(content)
    for piece_bytes in (1, WHOLE):
        texts, (rejection,) = read_bad(path, piece_bytes)
        assert texts == stories[:100] + stories[150:]
        assert rejection.documents == 50 and rejection.position == "rows 100-149 (row group 2)" and rejection.bytes > 0
        assert "cannot be read" in rejection.reason


def test_rows_before_a_damaged_page_are_kept(tmp_path: Path):
    texts = [f"{number} " * 500 for number in range(3000)]
    path = tmp_path / "a.parquet"
    options = {"write_page_checksum": True, "use_dictionary": False, "compression": "none"}
    pages = {"data_page_size": 50_000, "write_batch_size": 10}
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, **options, **pages)
    content = bytearray(path.read_bytes())
    at = content.index(b"2900 2900")
    content[at] ^= 1
    path.write_bytes(content)
    kept, (rejection,) = read_bad(path)
    assert kept == texts[: len(kept)] and 2000 < len(kept) < 2900
    assert rejection.documents == len(texts) - len(kept)


def test_only_the_text_column_of_parquet_is_read(tmp_path: Path):
    """A damaged other column does no harm, since its pages are never touched."""
    path = tmp_path / "a.parquet"
    noise = [os.urandom(500).hex() for _ in range(50)]
    table = pyarrow.table({"text": [f"story {i}" for i in range(50)], "noise": noise})
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    at = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    path.write_bytes(content[:at] + b"\xff" * 40 + content[at + 40 :])
    assert read(path) == table["text"].to_pylist()
    assert read_bad(path, text_column="noise")[1]


def test_a_large_row_group_is_read_in_little_memory(tmp_path: Path):
    """One row group of 500 MB; 200 MB more than the libraries themselves take."""
    path = tmp_path / "a.parquet"
    block = random.Random(0).randbytes(5000).hex()
    table = pyarrow.table({"text": [f"{number} {block}" for number in range(50_000)]})
    pyarrow.parquet.write_table(table, path, use_dictionary=False, compression="zstd", row_group_size=10**6)
    del table
    script = f"""
import pyarrow.parquet, resource
from data_prep.config import SourceConfig
from data_prep.reading.pieces import file_pieces
from data_prep.reading.readers import read_piece
from data_prep.reading.sources import source_files
source = SourceConfig(path={str(path)!r})
(file,) = source_files(source)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(piece,) = file_pieces(file, source, 1000)
assert piece.text_bytes > 490_000_000
assert sum(len(batch.texts) for batch in read_piece(file, source, piece, 10**7)) == 50_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt.gz", "a.parquet"])
def test_a_file_that_cannot_be_opened_is_rejected(tmp_path: Path, name: str):
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    texts, (rejection,) = read_bad(tmp_path / name)
    assert texts == [] and "No such file" in rejection.reason
    assert rejection.documents == 1 and 0 <= rejection.bytes <= (tmp_path / name).lstat().st_size


def test_a_damaged_footer_is_rejected_with_the_size_of_the_file(tmp_path: Path, stories: list[str], write_fineweb):
    path = write_fineweb(tmp_path / "a.parquet", stories)
    path.write_bytes(path.read_bytes()[:5000])
    texts, (rejection,) = read_bad(path)
    assert texts == [] and rejection.bytes == 5000


def test_a_column_that_is_missing_loses_all_rows(tmp_path: Path, stories: list[str], write_fineweb):
    texts, (rejection,) = read_bad(write_fineweb(tmp_path / "a.parquet", stories), text_column="body")
    assert texts == [] and rejection.documents == len(stories) and "no column 'body'" in rejection.reason


@pytest.mark.parametrize(("start", "stop", "lost"), [(0, 1000, 1000), (200, 300, 100), (300, None, 700)])
def test_a_disk_that_fails_under_reading_loses_the_rest_of_each_piece(start: int, stop: int | None, lost: int):
    """/proc/self/mem can be opened, and every read of its first page fails as a broken disk does."""
    file = SourceFile(url="/proc/self/mem", format="text", compression=None, size=1000, mark="1")
    source = SourceConfig(path=file.url, text_unit="line")
    (batch,) = read_piece(file, source, Piece(start=start, stop=stop, text_bytes=100), LIMIT)
    (rejection,) = batch.rejected
    assert batch.texts == [] and rejection.position == f"byte {start}"
    assert os.strerror(errno.EIO) in rejection.reason and abs(rejection.bytes - lost) <= 1


@pytest.fixture
def memory(tmp_path: Path):
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_remote_files_are_read_in_pieces(
    memory, tmp_path: Path, stories: list[str], write_jsonl, write_fineweb, name: str
):
    path = (write_fineweb if "parquet" in name else write_jsonl)(tmp_path / name, stories)
    memory.pipe(f"/set/{name}", path.read_bytes())
    for piece_bytes in (1000, WHOLE):
        assert read(f"memory://set/{name}", piece_bytes) == stories


def test_a_damaged_remote_parquet_page_is_rejected(memory, tmp_path: Path, stories: list[str], write_fineweb):
    path = write_fineweb(tmp_path / "a.parquet", stories, use_dictionary=False)
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 60] = b"\xff" * 60
    memory.pipe("/set/a.parquet", bytes(content))
    texts, (rejection,) = read_bad("memory://set/a.parquet")
    assert texts == stories[:100] + stories[150:] and rejection.documents == 50


class DropsConnections(MemoryFileSystem):
    """A file system whose reads beyond `fine` bytes of a file (but for its last) fail, in a way that is no OSError."""

    protocol = "drops"
    fine = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("drops://", "memory://"))

    def _open(self, path: str, *arguments: object, **options: object) -> "DroppingFile":
        return DroppingFile(super()._open(path, *arguments, **options).getvalue())


class DroppingFile(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell() + (size or 0) > DropsConnections.fine and self.tell() < len(self.getvalue()) - 100_000:
            raise LookupError("connection lost")
        return super().read(size)


@pytest.mark.parametrize("fine", [0, 200_000])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt"])
def test_a_lost_connection_is_never_a_rejected_document(
    memory, tmp_path: Path, write_jsonl, write_text, write_fineweb, name: str, fine: int
):
    texts = [os.urandom(500).hex() for _ in range(3000)]
    write = {"parquet": write_fineweb, "txt": write_text}.get(name.split(".")[-1], write_jsonl)
    memory.pipe(f"/set/{name}", write(tmp_path / name, texts).read_bytes())
    fsspec.register_implementation("drops", DropsConnections, clobber=True)
    DropsConnections.fine = fine
    source = SourceConfig(path=f"drops://set/{name}")
    (file,) = source_files(source)
    kept = []
    with pytest.raises(ConnectionError, match=r"set/a\..*cannot be read now \(LookupError: connection lost\)"):
        for piece in file_pieces(file, source, WHOLE):
            for batch in read_piece(file, source, piece, LIMIT):
                assert batch.rejected == []
                kept += batch.texts
    assert kept == texts[: len(kept)] and len(kept) < len(texts)
