from pathlib import Path

import numpy
import pytest

from data_prep.errors import DataError
from data_prep.megatron import IndexedDataset
from data_prep.shards import ShardWriter, output_folder, write_text


@pytest.mark.parametrize(("vocab_size", "dtype"), [(49152, numpy.uint16), (65499, numpy.uint16), (65500, numpy.int32)])
def test_megatron_reads_back_what_was_written(tmp_path: Path, vocab_size: int, dtype: type):
    random = numpy.random.default_rng(1)
    written = [random.integers(0, vocab_size, size).tolist() for size in (1, 7, 5000, 2)]
    written.append([vocab_size - 1])
    with ShardWriter(tmp_path / "shard", vocab_size) as writer:
        for ids in written:
            writer.add(ids)
    read = IndexedDataset(str(tmp_path / "shard"))
    assert [one.tolist() for one in read] == written
    assert read.document_indices.tolist() == list(range(len(written) + 1))
    assert read.index.dtype == dtype
    assert (writer.documents, writer.tokens) == (len(written), sum(map(len, written)))


def test_names_appear_only_at_the_end(tmp_path: Path):
    with ShardWriter(tmp_path / "shard", 100) as writer:
        writer.add([1, 2])
        assert [path.name for path in tmp_path.iterdir()] == [".shard.bin.partial"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard.bin", "shard.idx"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_an_error(tmp_path: Path, error: type[BaseException]):
    with pytest.raises(error), ShardWriter(tmp_path / "shard", 100) as writer:
        writer.add([1, 2])
        raise error
    assert list(tmp_path.iterdir()) == []


def test_no_documents_no_files(tmp_path: Path):
    with ShardWriter(tmp_path / "shard", 100) as writer:
        pass
    assert list(tmp_path.iterdir()) == [] and writer.digest == ""


def test_digest_is_of_the_bytes(tmp_path: Path):
    import hashlib

    with ShardWriter(tmp_path / "shard", 100) as writer:
        writer.add([1, 2, 3])
    content = (tmp_path / "shard.bin").read_bytes() + (tmp_path / "shard.idx").read_bytes()
    assert writer.digest == hashlib.sha256(content).hexdigest()


def test_an_id_that_does_not_fit_is_an_error(tmp_path: Path):
    with pytest.raises(OverflowError), ShardWriter(tmp_path / "shard", 100) as writer:
        writer.add([70000])
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_clear_line(small_disk: Path):
    says = r"^/.*/shard\.bin: the disk is full: [\d,]+ bytes written, [\d,]+ bytes free; .*$"
    with pytest.raises(DataError, match=says), ShardWriter(small_disk / "shard", 100) as writer:
        while True:
            writer.add([1] * 1000)
    assert list(small_disk.iterdir()) == []


def test_disk_that_fills_with_the_index(small_disk: Path):
    """One-token documents: the index (20 bytes each) is what overflows, after the data has been written."""
    with pytest.raises(DataError, match="the disk is full"), ShardWriter(small_disk / "shard", 100) as writer:
        for _ in range(10_000):
            writer.add([1])
    assert list(small_disk.iterdir()) == []


def test_full_disk_under_a_text_file(small_disk: Path):
    with pytest.raises(DataError, match=r"a\.json: the disk is full"):
        write_text(small_disk / "a.json", "x" * 1_000_000)
    assert list(small_disk.iterdir()) == []


def test_output_folder_leaves_nothing_of_its_own_after_an_error(tmp_path: Path):
    (tmp_path / "log.txt").write_text("kept")
    (tmp_path / "shard-0.bin").write_text("from a killed run")
    with pytest.raises(RuntimeError), output_folder(tmp_path, ("shard-*",)) as folder:
        assert [path.name for path in folder.iterdir()] == ["log.txt"]
        (folder / "shard-1.bin").write_text("new")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_output_folder_removes_the_folders_it_made(tmp_path: Path):
    with pytest.raises(RuntimeError), output_folder(tmp_path / "a" / "b", ("shard-*",)):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
