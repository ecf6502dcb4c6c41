import hashlib
import re
from pathlib import Path

import numpy
import pytest

from data_prep.errors import DataError
from data_prep.megatron import DType, IndexedDataset, IndexedDatasetBuilder
from data_prep.shards import ShardWriter, document_lengths, pair_digest, token_type
from foundation.errors import DiskError
from foundation.files import is_temporary


def add(writer: ShardWriter, *documents: list[int]) -> None:
    lengths = numpy.array([len(ids) for ids in documents], dtype=numpy.int64)
    writer.add(numpy.concatenate(documents).astype(numpy.uint32), lengths)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(49152, numpy.uint16), (65499, numpy.uint16), (65500, numpy.int32)])
def test_megatron_reads_back_what_was_written(tmp_path: Path, vocab_size: int, dtype: type):
    random = numpy.random.default_rng(1)
    written = [random.integers(0, vocab_size, size).tolist() for size in (1, 7, 5000, 2)]
    written.append([vocab_size - 1])
    with ShardWriter(tmp_path / "shard", vocab_size) as writer:
        add(writer, *written[:2])
        add(writer, *written[2:])
    read = IndexedDataset(str(tmp_path / "shard"))
    assert [one.tolist() for one in read] == written
    assert read.document_indices.tolist() == list(range(len(written) + 1))
    assert read.index.dtype == dtype
    assert (writer.documents, writer.tokens) == (len(written), sum(map(len, written)))


def test_names_appear_only_at_the_end(tmp_path: Path):
    with ShardWriter(tmp_path / "shard", 100) as writer:
        add(writer, [1, 2])
        (temporary,) = tmp_path.iterdir()
        assert is_temporary(temporary) and "shard.bin" in temporary.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard.bin", "shard.idx"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_an_error(tmp_path: Path, error: type[BaseException]):
    with pytest.raises(error), ShardWriter(tmp_path / "shard", 100) as writer:
        add(writer, [1, 2])
        raise error
    assert list(tmp_path.iterdir()) == []


def test_no_documents_no_files(tmp_path: Path):
    with ShardWriter(tmp_path / "shard", 100) as writer:
        pass
    assert list(tmp_path.iterdir()) == [] and writer.digest == ""


def test_digest_is_of_the_bytes(tmp_path: Path):
    with ShardWriter(tmp_path / "shard", 100) as writer:
        add(writer, [1, 2, 3])
    content = (tmp_path / "shard.bin").read_bytes() + (tmp_path / "shard.idx").read_bytes()
    assert writer.digest == hashlib.sha256(content).hexdigest() == pair_digest(tmp_path / "shard")


@pytest.mark.parametrize("vocab_size", [49152, 151_936])
def test_every_byte_is_as_megatrons_own_builder_writes_it(tmp_path: Path, vocab_size: int):
    random = numpy.random.default_rng(2)
    documents = [random.integers(0, vocab_size, size).tolist() for size in random.integers(1, 300, 50)]
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(vocab_size))
    for ids in documents:
        builder.add_document(ids, [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    with ShardWriter(tmp_path / "ours", vocab_size) as writer:
        add(writer, *documents)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    assert document_lengths(tmp_path / "ours").tolist() == [len(ids) for ids in documents]


@pytest.mark.parametrize("vocab_size", [1, 65_499, 65_500, 65_535, 65_536, 200_000])
def test_the_stored_type_is_megatrons_choice(vocab_size: int):
    assert token_type(vocab_size) == DType.optimal_dtype(vocab_size).__name__


def test_an_index_that_is_cut_or_foreign_is_refused(tmp_path: Path):
    with ShardWriter(tmp_path / "shard", 100) as writer:
        add(writer, *[[1]] * 100)
    whole = (tmp_path / "shard.idx").read_bytes()
    for content, says in ((whole[:200], "cut short"), (whole[:20], "not the index"), (b"x" * 900, "not the index")):
        (tmp_path / "shard.idx").write_bytes(content)
        with pytest.raises(DataError, match=says):
            document_lengths(tmp_path / "shard")


def test_an_id_that_does_not_fit_is_an_error(tmp_path: Path):
    with pytest.raises(OverflowError), ShardWriter(tmp_path / "shard", 100) as writer:
        add(writer, [70000])
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_clear_line(small_disk: Path):
    with (
        pytest.raises(DiskError, match=r"^/.*/shard\.bin: the disk is full: [\d,]+ bytes written, ") as caught,
        ShardWriter(small_disk / "shard", 100) as writer,
    ):
        while True:
            add(writer, [1] * 1000)
    written, free = re.findall(r"([\d,]+) bytes", str(caught.value))
    assert 50_000 < int(written.replace(",", "")) < 110_000 and int(free.replace(",", "")) < 10_000
    assert "\n" not in str(caught.value)
    assert list(small_disk.iterdir()) == []


def test_disk_that_fills_with_the_index(small_disk: Path):
    """One-token documents: the index (20 bytes each) is what overflows, after the data has been written."""
    with pytest.raises(DiskError, match="the disk is full"), ShardWriter(small_disk / "shard", 100) as writer:
        for _ in range(10_000):
            add(writer, [1])
    assert list(small_disk.iterdir()) == []
