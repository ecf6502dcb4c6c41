"""Real text and tokenizers for the tests of data_prep; they lie beside the repository, not in it."""

import gzip
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow
import pyarrow.parquet
import pytest
import zstandard


@pytest.fixture(scope="session")
def data(shared_data: Path) -> Path:
    return shared_data


@pytest.fixture(scope="session")
def stories(data: Path) -> list[str]:
    lines = (data / "text" / "tinystories-train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:400]]


@pytest.fixture(scope="session")
def tiny_tokenizer(data: Path) -> Path:
    return data / "models" / "tinystories-656k"


@pytest.fixture(scope="session")
def write_jsonl():
    def write(path: Path, texts: list, key: str = "text") -> Path:
        content = "".join(json.dumps({key: text, "id": str(i)}) + "\n" for i, text in enumerate(texts)).encode()
        path.write_bytes(_compress(path, content))
        return path

    return write


@pytest.fixture(scope="session")
def write_text():
    def write(path: Path, texts: list[str]) -> Path:
        path.write_bytes(_compress(path, "\n\n".join(texts).encode()))
        return path

    return write


@pytest.fixture(scope="session")
def write_fineweb():
    """A Parquet file with FineWeb's schema, in several row groups; `options` are those of pyarrow's writer."""

    def write(path: Path, texts: list, **options: object) -> Path:
        count = len(texts)
        columns = {
            "text": texts,
            "id": [f"<urn:uuid:{i}>" for i in range(count)],
            "dump": ["CC-MAIN-2024-10"] * count,
            "url": [f"https://example.org/{i}" for i in range(count)],
            "date": ["2024-02-28T00:00:00Z"] * count,
            "file_path": ["s3://commoncrawl/x.warc.gz"] * count,
            "language": ["en"] * count,
            "language_score": [0.9] * count,
            "token_count": list(range(count)),
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), path, **({"row_group_size": 50} | options))
        return path

    return write


def _compress(path: Path, content: bytes) -> bytes:
    return {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(content)
