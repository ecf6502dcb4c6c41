"""Tokenizers behind one small interface: text in, ids without special tokens out."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import DataError
from data_prep.tokenizers.sentencepiece_json import bpe_tokenizer_json
from data_prep.tokenizers.tokens import Tokens, flat

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer as HuggingFaceBackend

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>")


@dataclass(frozen=True)
class Tokenizer(ABC):
    """What data preparation needs of a tokenizer.

    name is the library with its version; vocab_size is the largest id + 1, special tokens included; digest is the
    SHA-256 of the tokenizer's files; special_tokens are names, special_ids the ids that text must never become (the
    unknown token's is none of them).
    """

    vocab_size: int
    eos_id: int
    eos_token: str
    digest: str
    special_tokens: tuple[str, ...]
    special_ids: frozenset[int]
    name: str

    @property
    @abstractmethod
    def fast_json(self) -> str | None:
        """A tokenizer.json of the same vocabulary without the special tokens, for the fast libraries.

        None where it has no such form.
        """

    @abstractmethod
    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text. None are added, and a special token's name in a text is encoded as the text that it is."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids for people's eyes, special tokens as their names."""

    def encode_flat(self, texts: list[str]) -> Tokens:
        """The ids of `encode_batch` as arrays."""
        return flat(self.encode_batch(texts))


@dataclass(frozen=True)
class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizers` model (https://huggingface.co/docs/tokenizers).

    It encodes a batch with RAYON_NUM_THREADS threads, or one for each core, unless TOKENIZERS_PARALLELISM is false;
    the variables are read when the first batch is encoded.
    """

    backend: "HuggingFaceBackend"

    @cached_property
    def fast_json(self) -> str | None:
        content = json.loads(self.backend.to_str())
        content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
        content["post_processor"] = None  # it adds special tokens, which these ids are without
        return json.dumps(content, ensure_ascii=False)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


@dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, on one thread; it never makes a control piece such as </s> out of text."""

    backend: "SentencePieceProcessor"

    @cached_property
    def fast_json(self) -> str | None:
        return bpe_tokenizer_json(self.backend)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.backend.encode(texts, out_type=int, add_bos=False, add_eos=False, num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if self.backend.is_control(i):  # decode would leave it out
                parts += [self.backend.decode(run), self.backend.id_to_piece(i)]
                run = []
            else:
                run.append(i)
        return "".join([*parts, self.backend.decode(run)])


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
        raise DataError(f"tokenizer {file}: cannot be read ({first_line(error)})") from error
    return _wrap(backend, file.parent, (file.name, *SETTINGS))


def _from_vocabulary_and_merges(folder: Path) -> HuggingFaceTokenizer:
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"tokenizer {folder}: transformers cannot build it ({first_line(error)})") from error
    return _wrap(backend, folder, ("vocab.json", "merges.txt", *SETTINGS))


def _wrap(backend: "HuggingFaceBackend", folder: Path, files: tuple[str, ...]) -> HuggingFaceTokenizer:
    # Without this the name of a special token inside a document would become the special id itself.
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    eos_token = _eos_token(folder, vocabulary)
    special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    special[eos_token] = vocabulary[eos_token]
    return HuggingFaceTokenizer(
        backend=backend,
        vocab_size=max(vocabulary.values()) + 1,
        eos_id=vocabulary[eos_token],
        eos_token=eos_token,
        digest=_digest(folder, files),
        special_tokens=tuple(special),
        special_ids=frozenset(special.values()) - _ids_of_text(backend, special),
        name=f"tokenizers {version('tokenizers')}",
    )


def _ids_of_text(backend: "HuggingFaceBackend", special: dict[str, int]) -> set[int]:
    """Special ids that text has by right: the unknown token's, and pieces that BPE joins out of bytes.

    SmolLM lists U+FFFD among its special tokens by the byte-level spelling of its piece.
    """
    kind = type(backend.model).__name__
    if kind == "Unigram":  # the one model whose class does not tell its unknown token
        return {json.loads(backend.to_str())["model"]["unk_id"]}
    ids = {i for name, i in special.items() if name == backend.model.unk_token}
    if kind == "BPE":
        ids |= {i for name, i in special.items() if [token.id for token in backend.model.tokenize(name)] == [i]}
    return ids


def _from_sentencepiece(file: Path) -> SentencePieceTokenizer:
    from sentencepiece import SentencePieceProcessor

    try:
        backend = SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise DataError(f"tokenizer {file}: not a SentencePiece model ({first_line(error)})") from error
    if backend.eos_id() < 0:
        raise DataError(f"tokenizer {file}: it has no end-of-sequence piece; train it with one (eos_id)")
    special = [i for i in range(backend.get_piece_size()) if backend.is_control(i) or backend.is_unknown(i)]
    return SentencePieceTokenizer(
        backend=backend,
        vocab_size=backend.get_piece_size(),
        eos_id=backend.eos_id(),
        eos_token=backend.id_to_piece(backend.eos_id()),
        digest=_digest(file.parent, (file.name,)),
        special_tokens=tuple(backend.id_to_piece(i) for i in special),
        special_ids=frozenset(i for i in special if not backend.is_unknown(i)),
        name=f"sentencepiece {version('sentencepiece')}",
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
        raise DataError(f"{file}: not JSON ({first_line(error)})") from error
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


def first_line(error: BaseException) -> str:
    """What an error says, its first line; its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
