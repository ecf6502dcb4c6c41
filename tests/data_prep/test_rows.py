import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from data_prep.artifact import ShardPart, ShardSet, SourceShards
from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.prepare import run
from data_prep.rows import Rows, build_rows, part_documents, validation_tokens
from data_prep.shards import ShardWriter

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
found = [torch.stack([row["tokens"] for row in part]) for part in (rows.train, rows.validation)]
torch.save(found, folder / f"rank{rank}.pt")
distributed.barrier()
"""


def write_part(prefix: Path, documents: list[list[int]]) -> ShardPart:
    with ShardWriter(prefix, 1000) as writer:
        for ids in documents:
            writer.add(ids)
    return ShardPart(prefix=prefix.name, documents=writer.documents, tokens=writer.tokens, digest=writer.digest)


def random_documents(low: int, high: int, count: int, seed: int) -> list[list[int]]:
    """Documents of 4-79 ids in [low, high), each ended by 0."""
    random = numpy.random.default_rng(seed)
    return [[*random.integers(low, high, random.integers(4, 80)).tolist(), 0] for _ in range(count)]


def make_shards(folder: Path, weights: tuple[float, ...], count: int = 200) -> ShardSet:
    """Source i has ids of [100 i + 1, 100 i + 101), so that a row shows where it came from."""
    folder.mkdir(exist_ok=True)
    sources = []
    for i, weight in enumerate(weights):
        low = 100 * i + 1
        train = write_part(folder / f"{i}-train", random_documents(low, low + 100, count, i))
        held = write_part(folder / f"{i}-validation", random_documents(low, low + 100, 30, 100 + i))
        names = {"name": str(i), "path": str(i), "weight": weight, "documents": count + 30, "empty_documents": 0}
        sources.append(SourceShards(**names, train=train, validation=held))
    shards = ShardSet(
        tokenizer="none",
        tokenizer_digest="",
        vocab_size=1000,
        eos_id=0,
        dtype="uint16",
        row_length=LENGTH,
        seed=SEED,
        sources=tuple(sources),
    )
    shards.save(folder)
    return shards


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
def test_one_epoch_is_the_documents_joined_and_cut(tmp_path: Path, length: int):
    shards = make_shards(tmp_path, (1.0,))
    part = shards.sources[0].train
    expected = reference_rows([ids.tolist() for ids in part_documents(part, tmp_path)], length, SEED)
    rows = build(shards, tmp_path, len(expected), row_length=length)
    found = []
    for row in rows.train:
        assert row["tokens"].shape == row["labels"].shape == (length,)
        assert row["tokens"].dtype == row["labels"].dtype == torch.int64
        assert torch.equal(row["tokens"][1:], row["labels"][:-1])
        found.append((*row["tokens"].tolist(), int(row["labels"][-1])))
    assert sorted(found) == sorted(expected)
    assert found != expected  # the rows are shuffled, too
    held = [ids.tolist() for ids in part_documents(shards.sources[0].validation, tmp_path)]
    found = [(*row["tokens"].tolist(), int(row["labels"][-1])) for row in rows.validation]
    assert sorted(found) == sorted(reference_rows(held, length, SEED))


def test_real_documents_reach_the_rows(tmp_path: Path, stories, tiny_tokenizer, write_jsonl):
    """Every row of the shards that `run` makes is a stretch of the joined stories."""
    file = write_jsonl(tmp_path / "a.jsonl", stories)
    config = DataConfig.model_validate(
        {"sources": [{"path": str(file)}], "row_length": 128, "validation_fraction": 0.1, "seed": 7}
    )
    out = tmp_path / "out"
    shards = run(config, tokenizer=tiny_tokenizer, model_vocab_size=2048, out_dir=out)
    expected = reference_rows([ids.tolist() for ids in part_documents(shards.sources[0].train, out)], 128, 7)
    rows = build(shards, out, len(expected), cache_dir=tmp_path / "cache")
    assert sorted(map(tuple, tokens(rows.train).tolist())) == sorted(row[:-1] for row in expected)
    assert sorted(path.suffix for path in out.iterdir()) == [".bin", ".bin", ".idx", ".idx", ".json"]


def test_rows_end_where_asked(tmp_path: Path):
    shards = make_shards(tmp_path, (1.0,))
    rows = build(shards, tmp_path, 5, 3)
    assert (len(rows.train), len(rows.validation)) == (5, 3)
    for index in (5, -1):
        with pytest.raises(IndexError):
            rows.train[index]
    assert len(build(shards, tmp_path, 5, 10**6).validation) < 100
    assert build(shards, tmp_path, 5, 0).validation is None


@pytest.mark.parametrize(("weights", "asked"), [((3.0, 1.0), 400), ((0.7, 0.2, 0.1), 1000), ((8, 1, 1, 1, 1, 1), 7)])
def test_sources_are_blended_by_weight(tmp_path: Path, weights: tuple[float, ...], asked: int):
    shards = make_shards(tmp_path, weights)
    rows = tokens(build(shards, tmp_path, asked).train)
    origin = (rows.max(dim=1).values - 1) // 100
    assert all(row[row > 0].min() > 100 * source for row, source in zip(rows, origin, strict=True))
    for source, weight in enumerate(weights):
        # The blend keeps each count within one row per other source of its share at every point of the order.
        for end in (asked // 2, asked):
            share = weight / sum(weights) * end
            assert abs(int((origin[:end] == source).sum()) - share) <= len(weights) - 1


def test_order_is_that_of_seed_and_content(tmp_path: Path):
    shards = make_shards(tmp_path / "one", (2.0, 1.0))
    first = tokens(build(shards, tmp_path / "one", 100).train)
    again = tokens(build(shards, tmp_path / "one", 100, cache_dir=tmp_path / "other").train)
    moved = tokens(build(make_shards(tmp_path / "two", (2.0, 1.0)), tmp_path / "two", 100).train)
    assert torch.equal(first, again) and torch.equal(first, moved)
    other_seed = shards.model_copy(update={"seed": 1})
    assert not torch.equal(first, tokens(build(other_seed, tmp_path / "one", 100).train))


def test_order_within_one_epoch_does_not_depend_on_train_rows(tmp_path: Path):
    shards = make_shards(tmp_path, (1.0, 1.0))
    long, short = (tokens(build(shards, tmp_path, rows).train) for rows in (200, 50))
    assert torch.equal(long[:50], short)


def test_more_than_one_epoch_repeats_every_row_source(tmp_path: Path):
    shards = make_shards(tmp_path, (1.0,))
    total = shards.sources[0].train.tokens
    rows = tokens(build(shards, tmp_path, (2 * total - 1) // LENGTH).train)
    seen = torch.bincount(rows.flatten(), minlength=101)
    written = torch.zeros(101, dtype=torch.int64)
    for ids in part_documents(shards.sources[0].train, tmp_path):
        written += torch.bincount(torch.tensor(ids.tolist()), minlength=101)
    assert 0 <= int((2 * written - seen).sum()) <= LENGTH
    assert bool((seen <= 2 * written).all())


def test_new_content_under_the_same_paths_is_not_taken_from_the_cache(tmp_path: Path):
    build(make_shards(tmp_path, (1.0,), count=200), tmp_path, 50)
    changed = make_shards(tmp_path, (1.0,), count=50)
    rows = tokens(build(changed, tmp_path, 50).train)
    expected = reference_rows(
        [ids.tolist() for ids in part_documents(changed.sources[0].train, tmp_path)], LENGTH, SEED
    )
    assert set(map(tuple, rows.tolist())) <= {row[:-1] for row in expected}


def test_an_index_left_half_written_is_not_used(tmp_path: Path):
    shards = make_shards(tmp_path, (1.0, 1.0))
    first = tokens(build(shards, tmp_path, 100).train)
    complete = next((tmp_path / "cache").iterdir())
    for file in complete.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:100])
    complete.rename(complete.with_name(f".{complete.name}.partial"))
    assert torch.equal(first, tokens(build(shards, tmp_path, 100).train))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [complete.name]


def test_a_source_without_held_out_rows_is_left_out(tmp_path: Path):
    shards = make_shards(tmp_path, (1.0, 1.0))
    nothing = write_part(tmp_path / "nothing", [])
    short = write_part(tmp_path / "short", [[5, 0]])
    for held in (nothing, short):
        source = shards.sources[1].model_copy(update={"validation": held})
        rows = build(shards.model_copy(update={"sources": (shards.sources[0], source)}), tmp_path, 10)
        assert int(tokens(rows.validation).max()) <= 100
    sources = tuple(source.model_copy(update={"validation": nothing}) for source in shards.sources)
    assert build(shards.model_copy(update={"sources": sources}), tmp_path, 10).validation is None


def test_validation_tokens_are_the_held_out_documents_joined(tmp_path: Path):
    shards = make_shards(tmp_path, (1.0, 1.0))
    expected = random_documents(1, 101, 30, 100) + random_documents(101, 201, 30, 101)
    found = validation_tokens(shards, tmp_path)
    assert found.dtype == numpy.int64
    assert found.tolist() == [token for ids in expected for token in ids]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"row_length": 1}, "at least 2 tokens"),
        ({"row_length": 10**6}, "0-train: .* a row of 1000000 needs 1000001"),
        ({"train_rows": 0}, "at least one row"),
        ({"validation_rows": -1}, "cannot be negative"),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, change: dict, says: str):
    shards = make_shards(tmp_path, (1.0,))
    with pytest.raises(DataError, match=says):
        build(shards, tmp_path, **({"train_rows": 10} | change))
    assert not (tmp_path / "cache").exists()


def test_full_disk_under_the_cache(tmp_path: Path, small_disk: Path):
    shards = make_shards(tmp_path / "data", (1.0, 1.0))
    with pytest.raises(DataError, match="the disk is full"):
        build(shards, tmp_path / "data", 100_000, cache_dir=small_disk / "cache")
    assert list((small_disk / "cache").iterdir()) == []
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_processes_of_a_group_see_the_rows_of_a_single_one(tmp_path: Path, world: int):
    shards = make_shards(tmp_path, (2.0, 1.0))
    arguments = [sys.executable, "-c", WORKER]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    processes = [
        subprocess.Popen([*arguments, str(rank), str(world), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(world)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()
    single = build(shards, tmp_path, 500, cache_dir=tmp_path / "single")
    expected = [tokens(single.train), tokens(single.validation)]
    for rank in range(world):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_building_is_silent(tmp_path: Path, caplog, capfd, recwarn):
    shards = make_shards(tmp_path, (2.0, 1.0))
    with caplog.at_level("INFO"):
        build(shards, tmp_path, 100)
    assert [record.name for record in caplog.records] == ["data_prep.rows"]
    assert len(recwarn) == 0
    assert capfd.readouterr() == ("", "")
