"""Many shards as one data set, against Megatron-core's own reader, builder and rows over one merged shard."""

import pickle
from pathlib import Path

import numpy
import pytest
import torch

from data_prep.artifact import ShardSet, Split
from data_prep.errors import DataError
from data_prep.joined_shards import JoinedShards, OpenShards
from data_prep.megatron import (
    BlendedMegatronDatasetBuilder,
    GPTDataset,
    GPTDatasetConfig,
    IndexedDataset,
    IndexedDatasetBuilder,
)
from data_prep.rows import build_rows

LENGTH, SEED = 32, 77


class Tokenizer:
    """What stock GPTDataset asks of a tokenizer."""

    vocab_size = 1000
    eod = 0
    unique_identifiers: dict[str, str] = {}  # noqa: RUF012


def random_documents(low: int, count: int, seed: int) -> list[list[int]]:
    random = numpy.random.default_rng(seed)
    return [[*random.integers(low, low + 100, random.integers(4, 80)).tolist(), 0] for _ in range(count)]


def merge(folder: Path, split: Split, name: str) -> str:
    """One shard of all documents of the split, by Megatron-core's own merging; its prefix."""
    prefix = str(folder / name)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for shard in split.shards:
        builder.add_index(str(folder / shard.prefix))
    builder.finalize(f"{prefix}.idx")
    return prefix


def stock_rows(
    folder: Path, shards: ShardSet, train_rows: int
) -> tuple[torch.utils.data.Dataset, torch.utils.data.Dataset]:
    """Training and validation rows of unchanged Megatron-core over merged shards."""
    train = [merge(folder, source.train, f"merged-{source.name}-train") for source in shards.sources]
    held = [merge(folder, source.validation, f"merged-{source.name}-held") for source in shards.sources]
    config = GPTDatasetConfig(
        random_seed=shards.seed,
        sequence_length=LENGTH,
        blend_per_split=[(train, [source.weight for source in shards.sources]), (held, None), None],
        path_to_cache=str(folder / "stock-cache"),
        mid_level_dataset_surplus=max(0.005, 2 * len(train) / train_rows),
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    built = BlendedMegatronDatasetBuilder(GPTDataset, [train_rows, None, None], lambda: True, config).build()
    return built[0], built[1]


@pytest.fixture
def process_group(tmp_path: Path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("weights", "train_rows"),
    [
        ((1.0,), 150),  # part of an epoch
        ((1.0,), 1500),  # several epochs
        pytest.param((3.0, 1.0), 150, marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param((0.5, 0.3, 0.2), 1500, marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_rows_are_those_of_stock_megatron_over_one_merged_shard(
    tmp_path: Path, write_shards, process_group, weights: tuple[float, ...], train_rows: int
):
    sources = [
        (weight, random_documents(1 + 100 * i, 200, i), random_documents(1 + 100 * i, 40, 50 + i))
        for i, weight in enumerate(weights)
    ]
    shards = write_shards(tmp_path, *sources, shards=7, row_length=LENGTH, seed=SEED)
    assert all(len(source.train.shards) == 7 for source in shards.sources)
    train, held = stock_rows(tmp_path, shards, train_rows)
    rows = build_rows(shards, tmp_path, train_rows=train_rows, validation_rows=None, cache_dir=tmp_path / "cache")
    assert len(rows.train) == train_rows and len(rows.validation) == len(held)
    for ours, theirs, count in ((rows.train, train, train_rows), (rows.validation, held, len(held))):
        for index in range(count):
            row, expected = ours[index], theirs[index]
            assert all(torch.equal(row[key], expected[key]) for key in ("tokens", "labels"))


@pytest.fixture
def split(tmp_path: Path, write_split) -> Split:
    """100 documents in 9 shards of unequal size; the first has one document."""
    documents = random_documents(1, 99, 3)
    split = write_split(tmp_path / "many", documents, shards=8)
    return Split(shards=(*write_split(tmp_path / "one", [[5, 6, 7, 0]]).shards, *split.shards))


def test_documents_are_those_of_one_merged_shard(tmp_path: Path, split: Split):
    merged = IndexedDataset(merge(tmp_path, split, "merged"))
    joined = JoinedShards(tmp_path, split.shards, "uint16")
    assert len(joined) == len(merged) == split.documents == 100
    assert joined.sequence_lengths.dtype == numpy.int32
    assert numpy.array_equal(joined.sequence_lengths, merged.sequence_lengths)
    for index in range(100):
        assert numpy.array_equal(joined[index], merged[index])
        assert joined[index].dtype == numpy.uint16
        assert numpy.array_equal(joined.get(index, 1), merged.get(index, 1))
        assert numpy.array_equal(joined.get(numpy.int32(index), offset=2, length=2), merged.get(index, 2, 2))
    for index in (100, -1):
        with pytest.raises(IndexError, match=f"document {index} of 100"):
            joined[index]
    assert len(JoinedShards(tmp_path, (), "uint16")) == 0


def test_few_files_are_open_at_a_time_and_what_was_read_outlives_them(tmp_path: Path, split: Split):
    """A closed shard's mapping is gone: an array that still lay in it would end the process."""
    opened = OpenShards(limit=1)
    sets = [JoinedShards(tmp_path, split.shards, "uint16", opened) for _ in range(2)]
    assert len(opened) == 0  # nothing is opened in advance
    whole = [ids.tolist() for ids in JoinedShards(tmp_path, split.shards, "uint16")]
    order = numpy.random.default_rng(0).permutation(100)
    read = [sets[turn % 2][int(index)] for turn, index in enumerate(order)]
    assert len(opened) == 1
    assert [ids.tolist() for ids in read] == [whole[index] for index in order]


def test_the_shard_used_last_stays_open(tmp_path: Path, split: Split):
    opened = OpenShards(limit=2)
    first, second, third = (
        lambda shard=shard: opened.reader(tmp_path / shard.prefix, shard, "uint16") for shard in split.shards[:3]
    )
    kept = first()
    second()
    assert first() is kept
    third()  # closes the second
    assert first() is kept and len(opened) == 2


def test_a_rank_that_finds_the_index_complete_reads_no_shard_before_its_rows(tmp_path: Path, write_shards):
    documents = random_documents(1, 200, 3)
    shards = write_shards(tmp_path, (1.0, documents, documents[:50]), shards=5, row_length=LENGTH)
    sizes = {"train_rows": 100, "validation_rows": None, "cache_dir": tmp_path / "cache"}
    expected = build_rows(shards, tmp_path, **sizes).train[0]["tokens"]
    hidden = {path: path.rename(path.with_suffix(".hidden")) for path in tmp_path.glob("*.idx")}
    rows = build_rows(shards, tmp_path, **sizes)
    with pytest.raises(DataError, match=r"\.idx: No such file or directory; prepare the data again"):
        rows.train[0]
    for path, moved in hidden.items():
        moved.rename(path)
    assert torch.equal(rows.train[0]["tokens"], expected)


def test_it_can_be_sent_to_another_process(tmp_path: Path, split: Split):
    joined = JoinedShards(tmp_path, split.shards, "uint16")
    first = joined[0].tolist()
    assert pickle.loads(pickle.dumps(joined))[0].tolist() == first


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[:20], "another format, not version 1, type 8, 13 documents"),
        (lambda content: b"PK" + content[2:], "another format, not version 1, type 8, 13 documents"),
        (
            lambda content: content[:17] + b"\x04" + content[18:],
            "version 1, type 4, 13 documents, not version 1, type 8",
        ),
        (lambda content: content[:18] + b"\x0e" + content[19:], "type 8, 14 documents, not version 1, type 8, 13"),
        (lambda content: content[:-8], r"294 bytes, not 302"),
        (lambda content: content + b"\0", r"303 bytes, not 302"),
        (lambda content: content[:34] + b"\x01" + content[35:], r"tokens, the shard has"),
    ],
)
def test_a_torn_or_foreign_index_is_refused(tmp_path: Path, split: Split, damage, says: str):
    shard = split.shards[1]
    path = tmp_path / f"{shard.prefix}.idx"
    path.write_bytes(damage(path.read_bytes()))
    joined = JoinedShards(tmp_path, split.shards, "uint16")
    with pytest.raises(DataError, match=f"{shard.prefix}.idx: .*{says}.*; prepare the data again") as raised:
        joined.sequence_lengths  # noqa: B018
    assert "\n" not in str(raised.value)
    if "tokens" not in says:  # that one is only seen where all lengths are read
        with pytest.raises(DataError, match=says):
            joined[1]
    assert joined[0].tolist() == [5, 6, 7, 0]


def test_a_torn_index_is_refused_by_name_when_rows_are_built(tmp_path: Path, write_shards):
    documents = random_documents(1, 200, 3)
    shards = write_shards(tmp_path, (1.0, documents, []), shards=5, row_length=LENGTH)
    path = tmp_path / "0-train-3.idx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"0-train-3\.idx: .* bytes, not"):
        build_rows(shards, tmp_path, train_rows=100, validation_rows=None, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
