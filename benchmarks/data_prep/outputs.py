"""What each way wrote, as documents of token ids, and whether it is the same."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy


@dataclass(frozen=True)
class Output:
    """The documents of a run: how often each sequence of ids (uint32, as bytes, EOS included) occurs."""

    documents: Counter[bytes]
    tokens: int

    @property
    def count(self) -> int:
        return self.documents.total()


def read(folder: Path) -> Output:
    """The documents of a set of shards (shards.json), of `.bin/.idx` pairs, or of datatrove's `.ds` files in `folder`.

    Pairs are read by Megatron-core's IndexedDataset.

    Raises: ValueError if there is none of them.
    """
    counter: Counter[bytes] = Counter()
    tokens = 0
    for ids in _documents(folder):
        counter[ids.astype("<u4").tobytes()] += 1
        tokens += ids.size
    return Output(counter, tokens)


def libraries(folder: Path) -> str:
    """The tokenizer libraries that encoded a set of shards, as its lineage.json names them; empty if it has none."""
    file = folder / "lineage.json"
    if not file.is_file():
        return ""
    return ", ".join(sorted({shard["encoder"] for shard in json.loads(file.read_text()).values()}))


def _documents(folder: Path) -> Iterator[numpy.ndarray]:
    pairs, streams = _pairs(folder), sorted(folder.rglob("*.ds"))
    if not (pairs or streams):
        raise ValueError(f"{folder}: neither .idx nor .ds files")
    for prefix in pairs:
        yield from _megatron_documents(prefix)
    for path in streams:
        ids = numpy.fromfile(path, _ds_type(path))
        ends = numpy.fromfile(f"{path}.index", "<u8")
        if len(ends):
            yield from numpy.split(ids, ends[:-1].astype(numpy.int64))


def _pairs(folder: Path) -> list[Path]:
    """Paths without suffix; where shards.json names them, only those."""
    if not (folder / "shards.json").is_file():
        return [path.with_suffix("") for path in sorted(folder.glob("*.idx"))]
    from data_prep.artifact import ShardSet

    return [folder / shard.prefix for shard in ShardSet.load(folder).all_shards()]


def _megatron_documents(prefix: Path) -> Iterator[numpy.ndarray]:
    from data_prep.megatron import IndexedDataset

    shard = IndexedDataset(str(prefix))
    if len(shard.document_indices) != len(shard) + 1:
        raise ValueError(f"{prefix}: {len(shard.document_indices) - 1} documents, but {len(shard)} sequences")
    for index in range(len(shard)):
        yield shard[index]


def _ds_type(path: Path) -> str:
    """datatrove stores the bytes of a token behind the last | of the first line of its metadata."""
    size = Path(f"{path}.metadata").read_text().splitlines()[0].rpartition("|")[2]
    return {"2": "<u2", "4": "<u4"}[size]


def differences(expected: Output, got: Output, eos_id: int) -> list[str]:
    """What differs, one line each; empty if both hold the same documents, token by token, each ended by one EOS."""
    result = []
    if (expected.count, expected.tokens) != (got.count, got.tokens):
        result.append(f"{got.count} documents, {got.tokens} tokens; expected {expected.count}, {expected.tokens}")
    eos = numpy.uint32(eos_id)
    wrong_end = sum(not _ends_once(numpy.frombuffer(ids, "<u4"), eos) for ids in got.documents)
    if wrong_end:
        result.append(f"{wrong_end} documents without exactly one EOS ({eos_id}) at the end")
    surplus, missing = got.documents - expected.documents, expected.documents - got.documents
    for name, documents in (("not expected", surplus), ("missing", missing)):
        for ids in list(documents)[:3]:
            start = numpy.frombuffer(ids, "<u4")[:24].tolist()
            result.append(f"{name} ({documents.total()} in all): {len(ids) // 4} tokens, beginning with {start}")
    return result


def _ends_once(ids: numpy.ndarray, eos: numpy.uint32) -> bool:
    return ids.size > 0 and ids[-1] == eos and int((ids == eos).sum()) == 1
