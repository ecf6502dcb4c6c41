"""What the ways need beside the corpus: datatrove's own environment, and the tokenizers in the form that each reads."""

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
# The two extras that datatrove names for this, [io,processing], bring much that tokenizing does not use.
DATATROVE = ("datatrove==0.10.1", "orjson==3.13.0", "tokenizers", "pyarrow", "zstandard")


@dataclass(frozen=True)
class TokenizerCase:
    """A tokenizer as the project and Megatron-LM's way read it (`path`) and as datatrove does (`json`)."""

    name: str
    path: Path
    json: Path
    vocabulary: int
    eos: str
    eos_id: int


def tokenizer_case(name: str, data: Path, cache: Path, sample: Iterable[str]) -> TokenizerCase:
    """`name` is smollm or llama2; a tokenizer.json of Llama 2 is made, and compared with the original on `sample`.

    Raises: ValueError if the two differ on a text of `sample`.
    """
    if name == "smollm":
        path = data / "tokenizers" / "smollm" / "tokenizer.json"
        return TokenizerCase(name, path, path, 49152, "<|endoftext|>", 0)
    path = data / "tokenizers" / "llama2" / "tokenizer.model"
    converted = cache / "llama2" / "tokenizer.json"
    _convert(path, converted, sample)
    return TokenizerCase(name, path, converted, 32000, "</s>", 2)


def _convert(model: Path, target: Path, sample: Iterable[str]) -> None:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    from data_prep.tokenizers.sentencepiece_json import bpe_tokenizer_json

    reference = SentencePieceProcessor(model_file=str(model))
    content = bpe_tokenizer_json(reference)
    if content is None:
        raise ValueError(f"{model}: cannot be written as tokenizer.json, which datatrove needs")
    converted = Tokenizer.from_str(content)
    for text in sample:
        if converted.encode(text, add_special_tokens=False).ids != reference.encode(text):
            raise ValueError(f"{model}: as tokenizer.json it gives other ids for {text[:200]!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content, encoding="utf-8")


def datatrove_python(cache: Path) -> Path:
    """The interpreter of datatrove's environment under `cache`, made at the first call (about a minute, needs a package
    index); what the project pins too is taken in the project's version, so that both have the same tokenizers.

    Raises: subprocess.CalledProcessError if pip fails.
    """
    folder = cache / DATATROVE[0].replace("==", "-")
    python = folder / "bin" / "python"
    marker = folder / "complete"
    if not marker.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = ("-m", "pip", "install", "--quiet", "-c", PROJECT / "constraints.txt", *DATATROVE)
        subprocess.run([python, *install], check=True)
        marker.touch()
    return python


def datatrove_versions(python: Path) -> dict[str, str]:
    code = "import importlib.metadata as m, sys; print(*(f'{n}={m.version(n)}' for n in sys.argv[1:]))"
    output = subprocess.run(
        [python, "-c", code, "datatrove", "tokenizers"], check=True, capture_output=True, text=True
    ).stdout
    return dict(item.split("=") for item in output.split())
