"""Tokenizers behind one small interface: text in, ids without special tokens out."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from data_prep.errors import DataError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer as HuggingFaceBackend

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>")


class Tokenizer(Protocol):
    """What data preparation needs of a tokenizer.

    vocab_size is the largest id + 1, special tokens included; digest is the SHA-256 of the tokenizer's files.
    """

    vocab_size: int
    eos_id: int
    eos_token: str
    digest: str

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text. None are added, and a special token's name in a text is encoded as the text that it is."""


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """A `tokenizers` model (https://huggingface.co/docs/tokenizers)."""

    backend: "HuggingFaceBackend"
    vocab_size: int
    eos_id: int
    eos_token: str
    digest: str

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model; it never makes a control piece such as </s> out of text."""

    backend: "SentencePieceProcessor"
    vocab_size: int
    eos_id: int
    eos_token: str
    digest: str

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.backend.encode(texts, out_type=int, add_bos=False, add_eos=False)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a folder or file.

    A folder holds tokenizer.json, or vocab.json and merges.txt (built by transformers' fast tokenizer), or
    tokenizer.model, looked for in this order; a file is a .json or a .model.

    Raises: DataError if there is none, it cannot be read, or it has no end-of-sequence token.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"tokenizer {path}: no such file or folder; give a folder with tokenizer.json or the file itself"
        )
    if path.is_file():
        if path.suffix == ".json":
            return _from_tokenizer_json(path)
        if path.suffix == ".model":
            return _from_sentencepiece(path)
        raise DataError(f"tokenizer {path}: neither a tokenizer.json nor a tokenizer.model file")
    if (path / "tokenizer.json").is_file():
        return _from_tokenizer_json(path / "tokenizer.json")
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return _from_vocabulary_and_merges(path)
    if (path / "tokenizer.model").is_file():
        return _from_sentencepiece(path / "tokenizer.model")
    raise DataError(
        f"tokenizer {path}: the folder has no tokenizer.json, vocab.json with merges.txt, or tokenizer.model"
    )


def _from_tokenizer_json(file: Path) -> HuggingFaceTokenizer:
    from tokenizers import Tokenizer as HuggingFaceBackend

    try:
        backend = HuggingFaceBackend.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise DataError(f"tokenizer {file}: cannot be read ({_first_line(error)})") from error
    return _wrap(backend, file.parent, (file.name, *SETTINGS))


def _from_vocabulary_and_merges(folder: Path) -> HuggingFaceTokenizer:
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"tokenizer {folder}: transformers cannot build it ({_first_line(error)})") from error
    return _wrap(backend, folder, ("vocab.json", "merges.txt", *SETTINGS))


def _wrap(backend: "HuggingFaceBackend", folder: Path, files: tuple[str, ...]) -> HuggingFaceTokenizer:
    # Without this the name of a special token inside a document would become the special id itself.
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    eos_token = _eos_token(folder, vocabulary)
    return HuggingFaceTokenizer(
        backend=backend,
        vocab_size=max(vocabulary.values()) + 1,
        eos_id=vocabulary[eos_token],
        eos_token=eos_token,
        digest=_digest(folder, files),
    )


def _from_sentencepiece(file: Path) -> SentencePieceTokenizer:
    from sentencepiece import SentencePieceProcessor

    try:
        backend = SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise DataError(f"tokenizer {file}: not a SentencePiece model ({_first_line(error)})") from error
    if backend.eos_id() < 0:
        raise DataError(f"tokenizer {file}: it has no end-of-sequence piece; train it with one (eos_id)")
    return SentencePieceTokenizer(
        backend=backend,
        vocab_size=backend.get_piece_size(),
        eos_id=backend.eos_id(),
        eos_token=backend.id_to_piece(backend.eos_id()),
        digest=_digest(file.parent, (file.name,)),
    )


def _eos_token(folder: Path, vocabulary: Collection[str]) -> str:
    for name in SETTINGS:
        token = _read_json(folder / name).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            continue
        if token not in vocabulary:
            raise DataError(f"{folder / name}: eos_token {token!r} is not in the vocabulary of {folder}")
        return token
    for token in END_TOKENS:
        if token in vocabulary:
            return token
    raise DataError(f"tokenizer {folder}: no end-of-sequence token known; name it as eos_token in {SETTINGS[0]} there")


def _read_json(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds a {type(content).__name__}, not an object")
    return content


def _digest(folder: Path, names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
