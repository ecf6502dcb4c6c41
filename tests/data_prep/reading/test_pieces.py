import random
from itertools import pairwise
from pathlib import Path

import pytest

from data_prep.config import SourceConfig
from data_prep.reading.files import SourceFile
from data_prep.reading.pieces import Piece, even_ranges, file_pieces, join_row_groups
from data_prep.reading.sources import source_files


def pieces(path: Path, piece_bytes: int, **options: str) -> tuple[Piece, ...]:
    source = SourceConfig(path=str(path), **options)
    (file,) = source_files(source)
    return file_pieces(file, source, piece_bytes)


def of_size(size: int, name: str = "a.jsonl", compression: str | None = None) -> SourceFile:
    kind = "text" if ".txt" in name else "jsonl"
    return SourceFile(url=name, format=kind, compression=compression, size=size, mark="1")


def test_byte_ranges_cover_the_file_and_are_even():
    draw = random.Random(0)
    for _ in range(500):
        size, piece_bytes = draw.randint(1, 10**7), draw.randint(1, 10**6)
        ranges = even_ranges(size, piece_bytes)
        assert ranges[0][0] == 0 and ranges[-1][1] == size
        assert all(before[1] == after[0] for before, after in pairwise(ranges))
        lengths = [stop - start for start, stop in ranges]
        assert max(lengths) - min(lengths) <= 1 and min(lengths) >= 1
        assert max(lengths) < max(1.5 * piece_bytes + 1, 2)


def test_row_groups_are_joined_without_gap_or_overlap():
    draw = random.Random(0)
    for _ in range(500):
        sizes = [draw.choice([0, 1, draw.randint(1, 10**6)]) for _ in range(draw.randint(1, 60))]
        piece_bytes = draw.randint(1, 2 * 10**6)
        ranges = join_row_groups(sizes, piece_bytes)
        assert ranges[0][0] == 0 and ranges[-1][1] == len(sizes)
        assert all(before[1] == after[0] for before, after in pairwise(ranges))
        assert all(start < stop for start, stop in ranges)
        held = [sum(sizes[start:stop]) for start, stop in ranges]
        assert max(held) <= 1.5 * piece_bytes + max(sizes)


def test_even_row_groups_are_joined_evenly():
    assert [stop - start for start, stop in join_row_groups([10] * 10, 50)] == [5, 5]
    held = [stop - start for start, stop in join_row_groups([10] * 1000, 64)]
    assert set(held) <= {6, 7}


def test_a_thousand_tasks_over_a_hundred_files_of_very_different_sizes_have_equal_text():
    draw = random.Random(0)
    source = SourceConfig(path="x")
    sizes = [int(2**20 * draw.lognormvariate(8, 1.5)) for _ in range(100)]
    assert max(sizes) > 100 * min(sizes)
    cut = [piece for size in sizes for piece in file_pieces(of_size(size), source, 64 * 2**20)]
    assert sum(piece.text_bytes for piece in cut) == sum(sizes)
    tasks = [sum(piece.text_bytes for piece in cut[task::1000]) for task in range(1000)]
    mean = sum(sizes) / 1000
    assert max(tasks) < 1.2 * mean and min(tasks) > 0.8 * mean


def test_compressed_files_are_cut_by_an_estimate_and_open_at_the_end():
    source = SourceConfig(path="x")
    cut = file_pieces(of_size(1000, compression="gz"), source, 1000)
    assert [(piece.start, piece.stop) for piece in cut] == [(0, 1000), (1000, 2000), (2000, None)]
    for compression, most in (("gz", 8), ("zst", 16)):
        assert len(file_pieces(of_size(10**9, compression=compression), source, 1000)) == most


def test_a_file_that_is_one_document_is_one_piece():
    source = SourceConfig(path="x", text_unit="file")
    (piece,) = file_pieces(of_size(10**6, "a.txt"), source, 10)
    assert (piece.start, piece.stop, piece.text_bytes) == (0, None, 10**6)


def test_empty_files_have_no_pieces(tmp_path: Path, write_fineweb):
    source = SourceConfig(path="x")
    for name, compression in (("a.jsonl", None), ("a.txt", None), ("a.txt.gz", "gz")):
        assert file_pieces(of_size(0, name, compression), source, 10) == ()
    assert pieces(write_fineweb(tmp_path / "a.parquet", []), 10) == ()


def test_parquet_pieces_are_row_groups_of_about_the_wanted_text(tmp_path: Path, stories: list[str], write_fineweb):
    path = write_fineweb(tmp_path / "a.parquet", stories, row_group_size=10)
    piece_bytes = sum(map(len, stories)) // 8
    cut = pieces(path, piece_bytes)
    assert 6 <= len(cut) <= 10
    assert [cut[0].start, cut[-1].stop] == [0, 40]
    assert all(before.stop == after.start for before, after in pairwise(cut))
    assert sum(piece.documents for piece in cut) == len(stories)
    assert all(0.5 * piece_bytes < piece.text_bytes < 1.5 * piece_bytes for piece in cut)
    assert len(pieces(path, 1)) == 40


def test_what_cannot_be_read_at_all_is_one_piece_that_says_why(tmp_path: Path, stories: list[str], write_fineweb):
    path = write_fineweb(tmp_path / "a.parquet", stories)
    (piece,) = pieces(path, 100, text_column="body")
    assert piece.problem.startswith("no column 'body'; it has text, id,") and piece.documents == len(stories)
    (piece,) = pieces(path, 100, text_column="token_count")
    assert piece.problem == "column 'token_count' is int64, not a string"
    path.write_bytes(path.read_bytes()[:-100])
    (piece,) = pieces(path, 100)
    assert "cannot be read" in piece.problem and "\n" not in piece.problem
    assert piece.documents is None and piece.text_bytes == path.stat().st_size
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    (piece,) = pieces(path, 100)
    assert "No such file" in piece.problem


@pytest.mark.parametrize("text_unit", ["line", "paragraph"])
def test_text_is_cut_by_bytes(tmp_path: Path, text_unit: str):
    (tmp_path / "a.txt").write_text("a\n\nb\n\nc")
    cut = pieces(tmp_path / "a.txt", 2, text_unit=text_unit)
    assert [(piece.start, piece.stop) for piece in cut] == [(0, 1), (1, 3), (3, 5), (5, 7)]
