"""Needle-in-a-haystack samples of an exact token length: a pure function of configuration, length and seed.

RULER's multi-key form (arXiv:2404.06654): several facts, each stated once at a random depth in a haystack; one is asked
for at the end. The haystack is made of facts on other keys, or of held-out text.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.config import RecallConfig
from eval.errors import EvaluationError

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class RecallSamples:
    """n samples of one length.

    tokens: [n, length] int64, answer included at the end. answer_starts: [n] index of the answer's first token.
    keys, values: the fact that is asked. depths: where it is stated, as a fraction of the length.
    """

    tokens: np.ndarray
    answer_starts: np.ndarray
    keys: tuple[str, ...]
    values: tuple[str, ...]
    depths: tuple[float, ...]


@dataclass(frozen=True)
class _Sample:
    tokens: list[int]
    answer_length: int
    key: str
    value: str
    depth: float


def load_words(config: RecallConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys and values, read from their JSON file where a path is given.

    Raises: EvaluationError where a file is missing, of another format, or the keys are too few for the needles.
    """
    keys, values = _words(config.keys, "keys"), _words(config.values, "values")
    needed = config.needles + (1 if config.haystack == "facts" else 0)
    if len(keys) < needed:
        raise EvaluationError(
            f"recall.keys: {len(keys)} keys for {config.needles} needles in a haystack of {config.haystack}; "
            f"give at least {needed}"
        )
    return keys, values


def _words(words: tuple[str, ...] | Path, field: str) -> tuple[str, ...]:
    if isinstance(words, tuple):
        return words
    try:
        content = json.loads(words.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"recall.{field}: {words} does not exist; give a JSON file or the {field}") from None
    except (OSError, ValueError) as error:
        raise EvaluationError(f"recall.{field}: {words}: unknown format, not JSON: {error}") from None
    listed = content.get(field) if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(word, str) and word for word in listed):
        raise EvaluationError(f'recall.{field}: {words}: needs "{field}": a list of words, none empty')
    if len(set(listed)) < len(listed):
        raise EvaluationError(f"recall.{field}: {words}: has a word twice")
    return tuple(listed)


def recall_samples(
    config: RecallConfig,
    encode: Encode,
    haystack_tokens: np.ndarray,
    length: int,
    seed: int,
    prefix: Sequence[int] = (),
) -> RecallSamples:
    """`config.samples` samples of exactly `length` tokens, answer included; the same for the same arguments.

    Sample i is drawn from the generator seeded with (seed, length, i): it does not depend on how many there are.

    encode: text to token ids, without special tokens. haystack_tokens: [m] held-out tokens (used with haystack "text").
    prefix: token ids that every sample begins with (a BOS token).

    Raises: EvaluationError where needles and question do not fit in `length`, or the haystack's text is too short.
    """
    keys, values = load_words(config)
    cached = functools.cache(lambda text: tuple(encode(text)))
    drawn = [
        _draw(
            config,
            keys,
            values,
            cached,
            haystack_tokens,
            length,
            tuple(prefix),
            np.random.default_rng([seed, length, i]),
        )
        for i in range(config.samples)
    ]
    return RecallSamples(
        tokens=np.array([sample.tokens for sample in drawn], dtype=np.int64),
        answer_starts=np.array([length - sample.answer_length for sample in drawn]),
        keys=tuple(sample.key for sample in drawn),
        values=tuple(sample.value for sample in drawn),
        depths=tuple(sample.depth for sample in drawn),
    )


def _draw(
    config: RecallConfig,
    keys: tuple[str, ...],
    values: tuple[str, ...],
    encode: Encode,
    haystack_tokens: np.ndarray,
    length: int,
    prefix: tuple[int, ...],
    rng: np.random.Generator,
) -> _Sample:
    """One sample: prefix, haystack with the needles in it, question, answer."""
    order = [keys[index] for index in rng.permutation(len(keys))]
    needles = [(key, values[rng.integers(len(values))]) for key in order[: config.needles]]
    key, value = needles[rng.integers(len(needles))]
    question, answer = split_answer(encode, config.question.format(key=key), value)
    facts = [tuple(encode(config.fact.format(key=k, value=v))) for k, v in needles]
    room = length - len(prefix) - len(question) - len(answer) - sum(map(len, facts))
    if room < 0:
        raise EvaluationError(
            f"recall: {config.needles} needles and the question take {length - room} tokens, the length is {length}; "
            "take fewer needles, shorter templates or a longer context"
        )
    if config.haystack == "facts":
        others = order[config.needles :][: config.other_keys]
        start, pieces = _other_facts(config, others, values, encode, room, rng)
    else:
        start, pieces = (), _text(haystack_tokens, room, rng)
    gaps = np.sort(rng.integers(0, len(pieces) + 1, len(facts)))
    tokens = [*prefix, *start]
    depth = 0.0
    done = 0
    for gap, fact, (stated, _) in zip(gaps, facts, needles, strict=True):
        for piece in pieces[done:gap]:
            tokens.extend(piece)
        done = gap
        if stated == key:
            depth = len(tokens) / length
        tokens.extend(fact)
    for piece in pieces[done:]:
        tokens.extend(piece)
    tokens.extend((*question, *answer))
    return _Sample(tokens, len(answer), key, value, depth)


def _other_facts(
    config: RecallConfig,
    keys: list[str],
    values: tuple[str, ...],
    encode: Encode,
    room: int,
    rng: np.random.Generator,
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Facts on other keys, each key with one value throughout, in random order and repeated, `room` tokens in all.

    What whole facts leave over is filled by the end of one more, for the sample's start: as in a row cut from a text.
    Returns that start and the whole facts.
    """
    facts = [tuple(encode(config.fact.format(key=key, value=values[rng.integers(len(values))]))) for key in keys]
    pieces: list[tuple[int, ...]] = []
    while True:
        fact = facts[rng.integers(len(facts))]
        if len(fact) > room:
            return fact[len(fact) - room :], pieces
        pieces.append(fact)
        room -= len(fact)


def _text(tokens: np.ndarray, room: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """One stretch of `room` held-out tokens from a random place, token by token."""
    if len(tokens) < room:
        raise EvaluationError(
            f"recall: the haystack needs {room} held-out tokens, there are {len(tokens)}; prepare more validation "
            "text, or set recall.haystack = facts"
        )
    start = rng.integers(len(tokens) - room + 1)
    return [(token,) for token in tokens[start : start + room].tolist()]


def split_answer(encode: Encode, question: str, value: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of the question and of the answer, as the text "question value" is tokenized as a whole.

    The question's own trailing white space, or else one space, stands between them. Some tokenizers put it at the end
    of the question's last token, some at the start of the answer's first: the answer begins where the whole departs
    from the question's own tokens, with or without that space. A token that spans both (some vocabularies have merges
    across words) belongs to the answer, as the facts in the haystack are tokenized so too.
    """
    stripped = question.rstrip()
    space = question[len(stripped) :] or " "
    whole = tuple(encode(stripped + space + value))
    shared = max(_shared(whole, encode(stripped)), _shared(whole, encode(stripped + space)))
    if shared == len(whole):
        raise EvaluationError(f"recall.values: {value!r} adds no token to {question!r}; use other words or templates")
    return whole[:shared], whole[shared:]


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of equal tokens at the start."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
