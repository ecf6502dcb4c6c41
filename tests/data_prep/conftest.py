"""Real text and tokenizers for the tests of data_prep; they lie beside the repository, not in it."""

import gzip
import json
import os
import subprocess
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"the shared real data is not at {DATA}")
    return DATA


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
    """A Parquet file with FineWeb's schema, in several row groups."""

    def write(path: Path, texts: list[str | None]) -> Path:
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
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=50)
        return path

    return write


def _compress(path: Path, content: bytes) -> bytes:
    return {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(content)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 100 kB."""
    if os.geteuid() != 0:
        pytest.skip("a small file system can only be mounted by root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mount is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
