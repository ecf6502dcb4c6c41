"""The shards of a split as one data set, for Megatron-core's GPTDataset.

A split may have thousands of shards. Megatron would take each for a data set of its own, with its own order; here they
are one: the rows are those of a single shard that holds the same documents. Nothing is opened before it is needed, so
that a rank that finds the row index complete starts without reading one .idx file.
"""

import functools
import os
import resource
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy

from data_prep.artifact import Shard
from data_prep.errors import DataError
from data_prep.megatron import GPTDataset, GPTDatasetConfig, IndexedDataset
from data_prep.shards import BYTES_PER_DOCUMENT, HEADER, TYPE_CODES, VERSION

_HEAD = struct.Struct(f"<{len(HEADER)}sQBQQ")  # magic, version, type code, documents, documents + 1
_FILES_PER_SHARD = 3  # an open IndexedDataset: the .bin, its mapping and that of the .idx


class OpenShards:
    """Megatron-core's readers of the shards used last; the others are closed.

    By default as many stay open as take three eighths of the files that the process may open (`ulimit -n`).
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = _default_limit() if limit is None else limit
        self._readers: OrderedDict[str, IndexedDataset] = OrderedDict()

    def __len__(self) -> int:
        return len(self._readers)

    def reader(self, prefix: Path, shard: Shard, dtype: str) -> IndexedDataset:
        """The reader of a shard, opened if it is not.

        Its arrays lie in the mapped file: copy them before the next call, which may close it.

        Raises: DataError if the .idx is missing, torn or another shard's.
        """
        key = str(prefix)
        if key not in self._readers:
            with _index_stream(prefix) as stream:
                _check_head(prefix, stream, shard, dtype)
            while len(self._readers) >= self._limit:
                self._readers.popitem(last=False)
            self._readers[key] = IndexedDataset(key)
        self._readers.move_to_end(key)
        return self._readers[key]


class JoinedShards:
    """The documents of `shards`, one shard after the other, with what GPTDataset asks of a low-level data set.

    `shards` are relative to `folder` and store tokens as `dtype`. Sets that share `opened` share its limit.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: str, opened: OpenShards | None = None) -> None:
        self._folder, self._shards, self._dtype = Path(folder), tuple(shards), dtype
        self._opened = OpenShards() if opened is None else opened
        self._ends = numpy.cumsum([shard.documents for shard in shards], dtype=numpy.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._shards else 0

    def __getitem__(self, index: int) -> numpy.ndarray:
        """All token ids of document `index`, its EOS included."""
        return self.get(index)

    @functools.cached_property
    def sequence_lengths(self) -> numpy.ndarray:
        """Tokens in every document, int32 [documents]; reads all .idx files, one at a time.

        Raises: DataError if an .idx is missing, torn or another shard's.
        """
        lengths = numpy.empty(len(self), dtype=numpy.int32)
        for shard, end in zip(self._shards, self._ends, strict=True):
            lengths[end - shard.documents : end] = _read_lengths(self._folder / shard.prefix, shard, self._dtype)
        return lengths

    def get(self, index: int, offset: int = 0, length: int | None = None) -> numpy.ndarray:
        """`length` token ids of document `index` from `offset` on, or all from there; a copy in the stored type.

        Raises: IndexError if there is no such document; DataError if the shard's .idx is missing, torn or another's.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        number = int(numpy.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        reader = self._opened.reader(self._folder / shard.prefix, shard, self._dtype)
        first = int(self._ends[number]) - shard.documents
        return numpy.array(reader.get(int(index) - first, offset=offset, length=length))


@dataclass
class JoinedConfig(GPTDatasetConfig):
    """Megatron-core's settings, and the splits that the blends name.

    Megatron names its index files after what the blends name. These are digests, so that the files do not depend on
    where the shards lie.
    """

    splits: dict[str, JoinedShards] = field(default_factory=dict)


class JoinedGPTDataset(GPTDataset):
    """Megatron-core's rows over a split of many shards; `dataset_path` is the split's name in JoinedConfig.splits."""

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: JoinedConfig) -> JoinedShards:
        return config.splits[dataset_path]

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: JoinedShards) -> int:
        return len(low_level_dataset)


def _default_limit() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 2**20 if files == resource.RLIM_INFINITY else files
    return max(1, files // 8 * 3 // _FILES_PER_SHARD)


def _index_stream(prefix: Path) -> BinaryIO:
    try:
        return Path(f"{prefix}.idx").open("rb")
    except OSError as error:
        raise DataError(f"{prefix}.idx: {error.strerror or error}; prepare the data again") from error


def _check_head(prefix: Path, stream: BinaryIO, shard: Shard, dtype: str) -> None:
    """Leaves the stream behind the head, where the documents' lengths begin."""
    head = stream.read(_HEAD.size)
    size = os.fstat(stream.fileno()).st_size
    expected = _HEAD.pack(HEADER, VERSION, TYPE_CODES[dtype], shard.documents, shard.documents + 1)
    if head != expected:
        present = "another format"
        if len(head) == _HEAD.size and head.startswith(HEADER):
            _, version, code, documents, _ = _HEAD.unpack(head)
            present = f"version {version}, type {code}, {documents:,} documents"
        right = f"version {VERSION}, type {TYPE_CODES[dtype]}, {shard.documents:,} documents"
        raise DataError(f"{prefix}.idx: {present}, not {right}; prepare the data again")
    expected_size = _HEAD.size + shard.documents * BYTES_PER_DOCUMENT + 8
    if size != expected_size:
        raise DataError(f"{prefix}.idx: {size:,} bytes, not {expected_size:,}; prepare the data again")


def _read_lengths(prefix: Path, shard: Shard, dtype: str) -> numpy.ndarray:
    with _index_stream(prefix) as stream:
        _check_head(prefix, stream, shard, dtype)
        lengths = numpy.fromfile(stream, dtype=numpy.int32, count=shard.documents)
    tokens = int(lengths.sum(dtype=numpy.int64))
    if tokens != shard.tokens or lengths.min() < 1:
        raise DataError(f"{prefix}.idx: {tokens:,} tokens, the shard has {shard.tokens:,}; prepare the data again")
    return lengths
