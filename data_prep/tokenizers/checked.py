"""A fast library's ids, believed only as far as they were compared with the reference's."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import xxhash

from data_prep.errors import DataError
from data_prep.tokenizers.adversarial import adversarial_texts
from data_prep.tokenizers.fast import BACKENDS, FastBackend, Unavailable, is_failure, load_fast
from data_prep.tokenizers.reference import Tokenizer, first_line
from data_prep.tokenizers.tokens import Tokens

log = logging.getLogger(__name__)

SHOWN_CHARACTERS = 80
CHECK_SEED = 0x5EED  # apart from every other choice that is made by a document's hash


@dataclass(frozen=True)
class Choice:
    """backend is None where the reference works alone; refused has a reason for each library that was tried."""

    backend: FastBackend | None
    refused: dict[str, str]


class Difference(Exception):
    """A fast library's ids of a document are not the reference's.

    document: its text; position: its place in the batch; expected: the reference's ids; got: the library's, None where
    it gave none; the message is one line.
    """

    def __init__(
        self,
        backend: str,
        document: str,
        position: int,
        expected: numpy.ndarray,
        got: numpy.ndarray | None,
        reason: str,
    ):
        shown = ascii(document[:SHOWN_CHARACTERS]) + ("..." if len(document) > SHOWN_CHARACTERS else "")
        super().__init__(f"{backend}: {reason} in the document {shown} ({len(document)} characters)")
        self.document = document
        self.position = position
        self.expected = expected
        self.got = got


def choose(reference: Tokenizer, backend: str, sample: list[str], timed: list[str] | None = None) -> Choice:
    """The fast library to encode with.

    A library must give the reference's ids on the sample (documents of the work ahead) and on the adversarial texts.
    `backend` is "reference" (none), a library's name, or "auto": the fastest of those that are equal, on `timed`: some
    megabytes of other documents, since a library that remembers words is slow at first.

    Raises: DataError if the library that `backend` names is not there or not equal.
    """
    if backend == "reference":
        return Choice(None, {})
    texts = [*sample, *adversarial_texts(reference.special_tokens)]
    expected = reference.encode_flat(texts)
    equal: list[FastBackend] = []
    refused: dict[str, str] = {}
    for name in BACKENDS if backend == "auto" else (backend,):
        try:
            library = load_fast(name, reference)
            _compare(library.name, texts, expected, _encode(library, reference, texts))
            equal.append(library)
        except (Unavailable, Difference) as error:
            refused[name] = str(error)
    if backend != "auto" and refused:
        raise DataError(
            f"data backend {backend!r} cannot stand in for {reference.name}: {refused[backend]}; use auto or reference"
        )
    chosen = _fastest(equal, timed or sample or texts, refused) if len(equal) > 1 else next(iter(equal), None)
    log.info("tokenizer: %s", chosen.name if chosen else f"{reference.name}, without a fast library")
    for name, reason in refused.items():
        log.info("tokenizer: not %s: %s", name, reason)
    return Choice(chosen, refused)


class CheckedEncoder:
    """Encodes with a fast library, compares a share of the documents with the reference, and lets no special id pass.

    Which documents are compared follows from their text alone. documents_checked counts them, of finished batches.
    """

    def __init__(self, reference: Tokenizer, backend: FastBackend | None, check_fraction: float):
        self.reference = reference
        self.backend = backend
        self.documents_checked = 0
        self._check_below = int(check_fraction * 2**64)
        self._forbidden = numpy.zeros(reference.vocab_size + 1, dtype=bool)
        self._forbidden[[*reference.special_ids, reference.vocab_size]] = True  # the last stands for all beyond

    def encode_flat(self, texts: list[str], encoded: list[bytes] | None = None) -> Tokens:
        """Ids of the texts; `encoded` are their UTF-8 bytes, where they are at hand.

        Raises: Difference if the library fails or a compared document differs; DataError if the reference itself makes
        a special id out of text.
        """
        if self.backend is None:
            tokens = self.reference.encode_flat(texts)
            self._refuse_forbidden(texts, tokens)
            return tokens
        tokens = _encode(self.backend, self.reference, texts)
        self._refuse_forbidden(texts, tokens)
        encoded = [text.encode() for text in texts] if encoded is None else encoded
        chosen = [position for position, text in enumerate(encoded) if self._is_checked(text)]
        if chosen:
            expected = self.reference.encode_flat([texts[position] for position in chosen])
            _compare_some(self.backend.name, texts, chosen, expected, tokens)
            self.documents_checked += len(chosen)
        return tokens

    def _is_checked(self, text: bytes) -> bool:
        return xxhash.xxh3_64_intdigest(text, seed=CHECK_SEED) < self._check_below

    def _refuse_forbidden(self, texts: list[str], tokens: Tokens) -> None:
        """Look at every id: none may be special or beyond the vocabulary, in no document."""
        bad = self._forbidden.take(tokens.ids, mode="clip")
        if not bad.any():
            return
        index = int(bad.argmax())
        position = int(numpy.searchsorted(tokens.offsets, index, side="right")) - 1
        if self.backend is not None:
            expected = self.reference.encode_flat([texts[position]])
            _compare_some(self.backend.name, texts, [position], expected, tokens)
        raise DataError(
            f"tokenizer {self.reference.name}: it makes the special id {tokens.ids[index]} out of a document's text, "
            f"{texts[position][:SHOWN_CHARACTERS]!a}; take that text out, or use a tokenizer that keeps it text"
        )


def _encode(backend: FastBackend, reference: Tokenizer, texts: list[str]) -> Tokens:
    """The library's ids, of the right shape; Difference if it fails, naming the document where it does so alone."""
    try:
        tokens = backend.encode_flat(texts)
    except BaseException as error:
        if not is_failure(error) or not texts:
            raise
        position = _first_failing(backend, texts)
        expected = reference.encode_flat([texts[position]]).ids
        raise Difference(
            backend.name, texts[position], position, expected, None, f"failed ({first_line(error)})"
        ) from error
    offsets = tokens.offsets
    whole = len(offsets) == len(texts) + 1 and offsets[0] == 0 and offsets[-1] == len(tokens.ids)
    if not whole or (numpy.diff(offsets) < 0).any():
        expected = reference.encode_flat(texts[:1]).ids
        reason = f"gave {len(offsets) - 1} documents and {len(tokens.ids)} ids for {len(texts)} documents, the first"
        raise Difference(backend.name, "".join(texts[:1]), 0, expected, None, reason)
    return tokens


def _first_failing(backend: FastBackend, texts: list[str]) -> int:
    for position, text in enumerate(texts):
        try:
            backend.encode_flat([text])
        except BaseException as error:
            if not is_failure(error):
                raise
            return position
    return 0


def _compare(name: str, texts: list[str], expected: Tokens, got: Tokens) -> None:
    if numpy.array_equal(expected.offsets, got.offsets) and numpy.array_equal(expected.ids, got.ids):
        return
    _compare_some(name, texts, range(len(texts)), expected, got)


def _compare_some(name: str, texts: list[str], positions: Sequence[int], expected: Tokens, got: Tokens) -> None:
    """Compare the documents at `positions`; `expected` has those alone, `got` has all."""
    for row, position in enumerate(positions):
        theirs, ours = got.document(position), expected.document(row)
        if numpy.array_equal(theirs, ours):
            continue
        length = min(len(theirs), len(ours))
        unequal = numpy.flatnonzero(theirs[:length] != ours[:length])
        index = int(unequal[0]) if len(unequal) else length
        reason = f"id {index} is {_show(theirs, index)} where the reference has {_show(ours, index)}"
        raise Difference(name, texts[position], position, ours, theirs, reason)


def _show(ids: numpy.ndarray, index: int) -> str:
    return str(ids[index]) if index < len(ids) else "none"


def _fastest(backends: list[FastBackend], texts: list[str], refused: dict[str, str]) -> FastBackend | None:
    """The one that needs least time; one that fails on the texts goes to `refused`."""
    seconds = {}
    for backend in backends:
        try:
            seconds[backend.name] = _seconds(backend, texts)
        except BaseException as error:
            if not is_failure(error):
                raise
            refused[backend.name.split()[0]] = f"failed ({first_line(error)})"
    return min((one for one in backends if one.name in seconds), key=lambda one: seconds[one.name], default=None)


def _seconds(backend: FastBackend, texts: list[str]) -> float:
    """Core seconds for the second half of the texts, after the first has taught the library its words."""
    middle = len(texts) // 2
    backend.encode_flat(texts[:middle])
    start = time.process_time()  # not of the wall: a library with threads has no advantage
    backend.encode_flat(texts[middle:])
    return time.process_time() - start
