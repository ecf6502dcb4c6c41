import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from data_prep.artifact import ShardSet, Split
from data_prep.errors import DataError
from data_prep.joined_shards import JoinedShards
from data_prep.rows import Rows, borders, build_rows
from foundation.errors import DiskError
from foundation.files import temporary_path
from tests.forked import Starter

LENGTH = 32
SEED = 1234

WORKER = """
import sys, torch
from pathlib import Path
from torch import distributed
from data_prep.artifact import ShardSet
from data_prep.rows import build_rows
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
store = distributed.FileStore(str(folder / "store"), world)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
shards = ShardSet.load(folder)
for turn in range(2):
    rows = build_rows(shards, folder, train_rows=500, validation_rows=None, cache_dir=folder / "cache")
    assert distributed.is_initialized()
tensors = [torch.stack([row["tokens"] for row in split]) for split in (rows.train, rows.validation)]
torch.save(tensors, folder / f"rank{rank}.pt")
distributed.barrier()
"""


def random_documents(low: int, high: int, count: int, seed: int) -> list[list[int]]:
    """Documents of 4-79 ids in [low, high), each ended by 0."""
    random = numpy.random.default_rng(seed)
    return [[*random.integers(low, high, random.integers(4, 80)).tolist(), 0] for _ in range(count)]


@pytest.fixture
def make_shards(write_shards) -> Callable[..., ShardSet]:
    """Source i has ids of [100 i + 1, 100 i + 101), so that a row shows where it came from."""

    def make(folder: Path, weights: tuple[float, ...], count: int = 200, **options) -> ShardSet:
        sources = []
        for i, weight in enumerate(weights):
            low = 100 * i + 1
            train = random_documents(low, low + 100, count, i)
            sources.append((weight, train, random_documents(low, low + 100, 30, 100 + i)))
        return write_shards(folder, *sources, row_length=LENGTH, seed=SEED, **options)

    return make


def documents_of(split: Split, folder: Path) -> list[list[int]]:
    return [ids.tolist() for ids in JoinedShards(folder, split.shards, "uint16")]


def build(shards: ShardSet, folder: Path, train_rows: int, validation_rows: int | None = None, **options) -> Rows:
    sizes = {"train_rows": train_rows, "validation_rows": validation_rows, "cache_dir": folder / "cache"}
    return build_rows(shards, folder, **(sizes | options))


def tokens(rows) -> torch.Tensor:
    return torch.stack([row["tokens"] for row in rows])


def reference_rows(documents: list[list[int]], length: int, seed: int) -> list[tuple[int, ...]]:
    """One epoch by hand: shuffled documents, joined, cut every `length` tokens with one more for the label."""
    order = numpy.arange(len(documents), dtype=numpy.int32)
    numpy.random.RandomState(seed).shuffle(order)
    joined = [token for index in order for token in documents[index]]
    starts = range(0, len(joined) - length, length)
    return [tuple(joined[start : start + length + 1]) for start in starts]


@pytest.mark.parametrize("length", [LENGTH, 7, 500])
def test_one_epoch_is_the_documents_joined_and_cut(tmp_path: Path, make_shards, length: int):
    shards = make_shards(tmp_path, (1.0,))
    split = shards.sources[0].train
    expected = reference_rows(documents_of(split, tmp_path), length, SEED)
    rows = build(shards, tmp_path, len(expected), row_length=length)
    built = []
    for row in rows.train:
        assert row["tokens"].shape == row["labels"].shape == (length,)
        assert row["tokens"].dtype == row["labels"].dtype == torch.int64
        assert torch.equal(row["tokens"][1:], row["labels"][:-1])
        built.append((*row["tokens"].tolist(), int(row["labels"][-1])))
    assert sorted(built) == sorted(expected)
    assert built != expected  # the rows are shuffled, too
    held = documents_of(shards.sources[0].validation, tmp_path)
    built = [(*row["tokens"].tolist(), int(row["labels"][-1])) for row in rows.validation]
    assert sorted(built) == sorted(reference_rows(held, length, SEED))


def test_rows_end_where_asked(tmp_path: Path, make_shards):
    shards = make_shards(tmp_path, (1.0,))
    rows = build(shards, tmp_path, 5, 3)
    assert (len(rows.train), len(rows.validation)) == (5, 3)
    for index in (5, -1):
        with pytest.raises(IndexError):
            rows.train[index]
    assert len(build(shards, tmp_path, 5, 10**6).validation) < 100
    assert build(shards, tmp_path, 5, 0).validation is None


@pytest.mark.parametrize(("weights", "asked"), [((3.0, 1.0), 400), ((0.7, 0.2, 0.1), 1000), ((8, 1, 1, 1, 1, 1), 7)])
def test_sources_are_blended_by_weight(tmp_path: Path, make_shards, weights: tuple[float, ...], asked: int):
    shards = make_shards(tmp_path, weights)
    rows = tokens(build(shards, tmp_path, asked).train)
    origin = (rows.max(dim=1).values - 1) // 100
    assert all(row[row > 0].min() > 100 * source for row, source in zip(rows, origin, strict=True))
    for source, weight in enumerate(weights):
        # The blend keeps each count within one row per other source of its share at every point of the order.
        for end in (asked // 2, asked):
            share = weight / sum(weights) * end
            assert abs(int((origin[:end] == source).sum()) - share) <= len(weights) - 1


def test_order_is_that_of_seed_and_content(tmp_path: Path, make_shards):
    shards = make_shards(tmp_path / "one", (2.0, 1.0))
    first = tokens(build(shards, tmp_path / "one", 100).train)
    again = tokens(build(shards, tmp_path / "one", 100, cache_dir=tmp_path / "other").train)
    moved = tokens(build(make_shards(tmp_path / "two", (2.0, 1.0)), tmp_path / "two", 100).train)
    assert torch.equal(first, again) and torch.equal(first, moved)
    other_seed = shards.model_copy(update={"seed": 1})
    assert not torch.equal(first, tokens(build(other_seed, tmp_path / "one", 100).train))


def test_index_files_fit_shards_that_were_moved(tmp_path: Path, make_shards):
    shards = make_shards(tmp_path / "one", (2.0, 1.0), shards=3)
    first = tokens(build(shards, tmp_path / "one", 100, cache_dir=tmp_path / "cache").train)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    shutil.move(tmp_path / "one", tmp_path / "two")
    again = tokens(build(ShardSet.load(tmp_path / "two"), tmp_path / "two", 100, cache_dir=tmp_path / "cache").train)
    assert torch.equal(first, again)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert not any(b"one" in path.read_bytes() for path in before if path.suffix == ".txt")


def test_rows_say_where_documents_begin(tmp_path: Path, make_shards):
    """By hand: documents of one row are numbered from 0, an EOS is of the document that it ends."""
    marks = borders(torch.tensor([7, 8, 0, 5, 0, 9, 9, 0]), eos_id=0)
    assert marks["documents"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert marks["counted"].tolist() == [True, True, False, True, False, True, True, False]
    assert (marks["documents"].dtype, marks["counted"].dtype) == (torch.int32, torch.bool)
    shards = make_shards(tmp_path, (2.0, 1.0))
    plain, masked = build(shards, tmp_path, 100), build(shards, tmp_path, 100, mask_documents=True)
    for without, row in zip([*plain.train, *plain.validation], [*masked.train, *masked.validation], strict=True):
        assert without.keys() == {"tokens", "labels"}
        assert all(torch.equal(without[key], row[key]) for key in without)
        number = 0
        for j, token in enumerate(row["tokens"].tolist()):
            assert int(row["documents"][j]) == number
            assert bool(row["counted"][j]) == (token != 0)
            number += token == 0


def test_the_option_to_mask_needs_no_index_files_of_its_own(tmp_path: Path, make_shards):
    shards = make_shards(tmp_path, (1.0,))
    build(shards, tmp_path, 100)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    build(shards, tmp_path, 100, mask_documents=True)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}


def test_order_within_one_epoch_does_not_depend_on_train_rows(tmp_path: Path, make_shards):
    shards = make_shards(tmp_path, (1.0, 1.0))
    long, short = (tokens(build(shards, tmp_path, rows).train) for rows in (200, 50))
    assert torch.equal(long[:50], short)


def test_more_than_one_epoch_repeats_every_row_source(tmp_path: Path, make_shards):
    shards = make_shards(tmp_path, (1.0,))
    total = shards.sources[0].train.tokens
    rows = tokens(build(shards, tmp_path, (2 * total - 1) // LENGTH).train)
    seen = torch.bincount(rows.flatten(), minlength=101)
    written = torch.zeros(101, dtype=torch.int64)
    for ids in documents_of(shards.sources[0].train, tmp_path):
        written += torch.bincount(torch.tensor(ids), minlength=101)
    assert 0 <= int((2 * written - seen).sum()) <= LENGTH
    assert bool((seen <= 2 * written).all())


def test_new_content_under_the_same_paths_is_not_taken_from_the_cache(tmp_path: Path, make_shards):
    build(make_shards(tmp_path, (1.0,), count=200), tmp_path, 50)
    changed = make_shards(tmp_path, (1.0,), count=50)
    rows = tokens(build(changed, tmp_path, 50).train)
    expected = reference_rows(documents_of(changed.sources[0].train, tmp_path), LENGTH, SEED)
    assert set(map(tuple, rows.tolist())) <= {row[:-1] for row in expected}


@pytest.mark.parametrize("earlier_version", [False, True])
def test_an_index_left_half_written_is_not_used(tmp_path: Path, make_shards, earlier_version: bool):
    shards = make_shards(tmp_path, (1.0, 1.0))
    first = tokens(build(shards, tmp_path, 100).train)
    complete = next((tmp_path / "cache").iterdir())
    for file in complete.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:100])
    complete.rename(complete.with_name(f".{complete.name}.partial") if earlier_version else temporary_path(complete))
    assert torch.equal(first, tokens(build(shards, tmp_path, 100).train))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [complete.name]


def test_a_source_without_held_out_rows_is_left_out(tmp_path: Path, make_shards, write_split):
    shards = make_shards(tmp_path, (1.0, 1.0))
    nothing = Split()
    short = write_split(tmp_path / "short", [[5, 0]])
    for held in (nothing, short):
        source = shards.sources[1].model_copy(update={"validation": held})
        rows = build(shards.model_copy(update={"sources": (shards.sources[0], source)}), tmp_path, 10)
        assert int(tokens(rows.validation).max()) <= 100
    sources = tuple(source.model_copy(update={"validation": nothing}) for source in shards.sources)
    assert build(shards.model_copy(update={"sources": sources}), tmp_path, 10).validation is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"row_length": 1}, "at least 2 tokens"),
        ({"row_length": 10**6}, "source 0: .* a row of 1,000,000 needs 1,000,001"),
        ({"train_rows": 0}, "at least one row"),
        ({"validation_rows": -1}, "cannot be negative"),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, make_shards, change: dict, says: str):
    shards = make_shards(tmp_path, (1.0,))
    with pytest.raises(DataError, match=says):
        build(shards, tmp_path, **({"train_rows": 10} | change))
    assert not (tmp_path / "cache").exists()


def test_full_disk_under_the_cache(tmp_path: Path, make_shards, small_disk: Path):
    shards = make_shards(tmp_path / "data", (1.0, 1.0))
    with pytest.raises(DiskError, match="the disk is full"):
        build(shards, tmp_path / "data", 100_000, cache_dir=small_disk / "cache")
    assert list((small_disk / "cache").iterdir()) == []
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=[pytest.mark.slow, pytest.mark.long])])
def test_all_processes_of_a_group_see_the_rows_of_a_single_one(
    tmp_path: Path, make_shards, starter: Starter, world: int
):
    shards = make_shards(tmp_path, (2.0, 1.0))
    starter.run_together([["-c", WORKER, str(rank), str(world), str(tmp_path)] for rank in range(world)])
    single = build(shards, tmp_path, 500, cache_dir=tmp_path / "single")
    expected = [tokens(single.train), tokens(single.validation)]
    for rank in range(world):
        of_rank = torch.load(tmp_path / f"rank{rank}.pt")
        assert all(torch.equal(one, other) for one, other in zip(of_rank, expected, strict=True))


def test_building_is_silent(tmp_path: Path, make_shards, caplog, capfd, recwarn):
    shards = make_shards(tmp_path, (2.0, 1.0))
    with caplog.at_level("INFO"):
        build(shards, tmp_path, 100)
    assert [record.name for record in caplog.records] == ["data_prep.rows"]
    assert len(recwarn) == 0
    assert capfd.readouterr() == ("", "")
