"""Real text and tokenizers for the tests of data_prep, and files of each format."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow
import pyarrow.parquet
import pytest
import zstandard


@pytest.fixture(scope="session", name="stories")
def _stories(stories: list[str]) -> list[str]:
    return stories[:400]


@pytest.fixture(scope="session")
def tiny_tokenizer(small_model: Path) -> Path:
    return small_model


@pytest.fixture(scope="session")
def tokenizer_of(
    smollm2: Path, small_llama: Path, extra_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a tokenizer by its name: smollm and small for everybody, llama2 and qwen2 of DROPE_TEST_DATA."""
    smollm = tmp_path_factory.mktemp("smollm")
    shutil.copy(smollm2 / "tokenizer.json", smollm)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (smollm / "tokenizer_config.json").write_text(json.dumps(settings))
    folders = {"smollm": smollm, "small": small_llama}
    return lambda name: folders.get(name) or extra_data(f"tokenizers/{name}")


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
