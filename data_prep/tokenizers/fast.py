"""Fast tokenizer libraries behind one small interface: optional, young, and never used on trust (checked.py).

Each gets the tokenizer.json of the reference without its special tokens, so that none can be made out of text, and
encodes on one thread, since data preparation runs one process on each core.
"""

import os
import tempfile
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy

from data_prep.tokenizers.digits import is_disputed, merge_digits
from data_prep.tokenizers.reference import Tokenizer, first_line
from data_prep.tokenizers.tokens import Tokens, flat, join
from foundation.install import install_hint

if TYPE_CHECKING:
    from fastokens import Tokenizer as FastokensLibrary

# gigatoken remembers every word that it has seen; from this on it starts anew.
GIGATOKEN_BYTES = 96 * 1024**2


class Unavailable(Exception):
    """The library is not installed, or cannot read the tokenizer; the message says which."""


class FastBackend(Protocol):
    """name is the library with its version."""

    name: str

    def encode_flat(self, texts: list[str]) -> Tokens: ...


class Fastokens:
    """https://github.com/crusoecloud/fastokens.

    It reads FASTOKENS_BPE_THREADS, and not RAYON_NUM_THREADS, when it first encodes; unset, that becomes 1 here.
    """

    def __init__(self, tokenizer_json: str):
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        from fastokens import Tokenizer as Library

        self.name = f"fastokens {version('fastokens')}"
        self._json = tokenizer_json
        merged = merge_digits(tokenizer_json)
        self._merged = merged is not None
        self._usual = Library.from_json_str(merged or tokenizer_json)

    @cached_property
    def _plain(self) -> "FastokensLibrary":
        """Of the tokenizer as it is; loaded when unusual text first needs it, which for most workers is never."""
        return type(self._usual).from_json_str(self._json) if self._merged else self._usual

    def encode_flat(self, texts: list[str]) -> Tokens:
        if not self._merged or not texts:
            return self._encode_plain(texts)
        runs = groupby(texts, key=is_disputed)
        return join([(self._encode_plain if unusual else self._encode_usual)(list(run)) for unusual, run in runs])

    def _encode_plain(self, texts: list[str]) -> Tokens:
        return _tokens(self._plain.encode_batch_flat(texts))

    def _encode_usual(self, texts: list[str]) -> Tokens:
        try:
            return _tokens(self._usual.encode_batch_flat(texts))
        except ValueError:
            # The vocabulary lacks a byte, which is an error here; the other pre-tokenizers leave it out. One text has
            # it, and the others need not pay for that.
            if len(texts) == 1:
                return self._encode_plain(texts)
            middle = len(texts) // 2
            return join([self._encode_usual(texts[:middle]), self._encode_usual(texts[middle:])])


def _tokens(buffers: tuple[bytes, bytes]) -> Tokens:
    ids, offsets = buffers
    return Tokens(numpy.frombuffer(ids, "<u4"), numpy.frombuffer(offsets, "<u8").astype(numpy.int64))


class Gigatoken:
    """https://github.com/marcelroed/gigatoken; rebuilt now and then, because its memory of words has no bound."""

    def __init__(self, tokenizer_json: str):
        self.name = f"gigatoken {version('gigatoken')}"
        self._json = tokenizer_json
        self._build()

    def _build(self) -> None:
        from gigatoken import Tokenizer as Library

        self._library = Library.from_json(self._json)
        self._encoded = 0

    def encode_flat(self, texts: list[str]) -> Tokens:
        if self._encoded > GIGATOKEN_BYTES:
            self._build()
        self._encoded += sum(map(len, texts))
        if not texts:
            return flat([])
        layout = self._library.encode_batch(texts, parallel=False).layout
        offsets = numpy.asarray(layout.offsets.data).astype(numpy.int64)
        ids = numpy.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return Tokens(ids.astype(numpy.uint32, copy=False), offsets - offsets[0])


class Tokie:
    """https://pypi.org/project/tokie; a text at a time, because its batches use a thread for each core."""

    def __init__(self, tokenizer_json: str):
        from tokie import Tokenizer as Library

        self.name = f"tokie {version('tokie')}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "tokenizer.json"
            file.write_text(tokenizer_json, encoding="utf-8")
            self._library = Library.from_json(str(file))

    def encode_flat(self, texts: list[str]) -> Tokens:
        return flat([self._library.encode(text, add_special_tokens=False).ids for text in texts])


BACKENDS: dict[str, Callable[[str], FastBackend]] = {
    "fastokens": Fastokens,
    "gigatoken": Gigatoken,
    "tokie": Tokie,
}


def load_fast(name: str, reference: Tokenizer) -> FastBackend:
    """The fast library `name`, with the vocabulary of `reference`.

    Raises: Unavailable if it is not installed or cannot read the tokenizer; KeyError for a name not in BACKENDS.
    """
    make = BACKENDS[name]
    if reference.fast_json is None:
        raise Unavailable("the tokenizer has no tokenizer.json form")
    try:
        return make(reference.fast_json)
    except ImportError as error:
        raise Unavailable(f"not installed ({error}); {install_hint('fast')}") from error
    except BaseException as error:
        if not is_failure(error):
            raise
        raise Unavailable(f"it cannot read the tokenizer ({first_line(error)})") from error


def is_failure(error: BaseException) -> bool:
    """Whether a library failed, as opposed to somebody stopping the process; a panic in Rust is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
