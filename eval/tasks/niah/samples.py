"""Needle samples of an exact token length: a pure function of task, tokenizer, length, seed and essays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from zlib import crc32

import numpy as np

from eval.config import NiahConfig
from eval.errors import EvaluationError
from eval.tasks.niah.tasks import NOISE, TASKS, Task, needle, prompt
from eval.tasks.niah.words import draw

Encode = Callable[[str], Sequence[int]]

_DEPTHS = np.round(np.linspace(0, 100, 40)) / 100
"""RULER's grid of depths in essays."""
_LAST_CHARACTERS = 48
"""How far back from the longest text that fits one is sought that fits exactly."""


@dataclass(frozen=True)
class Sample:
    """prompt: the text with the question. prefix: start of the answer, after a space. answers: all that is right.

    tokens: of prompt and prefix. depth: where the needle that is asked stands, 0 to 1 of the haystack; None if several.
    """

    index: int
    prompt: str
    prefix: str
    answers: tuple[str, ...]
    tokens: tuple[int, ...]
    depth: float | None


@dataclass(frozen=True)
class _Drawn:
    """What is drawn before the haystack is cut: the asked keys, needles in order, and where each goes, 0 to 1."""

    keys: list[str]
    answers: tuple[str, ...]
    needles: list[str]
    places: list[float]
    depth: float | None


def draw_samples(
    name: str, config: NiahConfig, essays: Sequence[str], encode: Encode, length: int, seed: int
) -> list[Sample]:
    """`config.samples` samples whose prompt and `config.new_tokens` fill `length` tokens, and never exceed it.

    Sample i is drawn from the generator seeded with (seed, task, i), so it does not depend on how many there are. All
    samples of a task in noise or essays begin alike, up to the first needle. essays: sentences. encode: text to token
    ids, with the special tokens that a prompt has.

    Raises: EvaluationError where needles and question do not fit.
    """
    task, limit = TASKS[name], length - config.new_tokens
    common = None if task.haystack == "needles" else _Haystack.of(task, essays, limit)
    characters, samples = None, []
    for index in range(config.samples):
        rng = np.random.default_rng([seed, crc32(name.encode()), index])
        drawn = _draw(task, index, config.depths, rng)
        haystack = common or _Haystack.of_needles(task, drawn.keys, limit, rng)
        sample, characters = _fill(task, drawn, haystack, encode, limit, characters, index)
        if sample is None:
            raise EvaluationError(
                f"niah: a sample of {name} takes {characters} tokens without any haystack, and {config.new_tokens} are "
                f"for the answer: {length} are too few; take larger context_factors, fewer new_tokens or other tasks"
            )
        samples.append(sample)
    return samples


def _draw(task: Task, index: int, depths: int, rng: np.random.Generator) -> _Drawn:
    """Keys, values and places of one sample's needles."""
    keys = _distinct(task, task.keys, rng)
    values = [[draw(task.value, rng) for _ in range(task.values)] for _ in keys]
    facts = [(key, value) for key, each in zip(keys, values, strict=True) for value in each]
    order = rng.permutation(len(facts))
    asked = sorted(rng.permutation(len(keys))[: task.queries].tolist())
    if task.swept:
        places = [(index % depths) / (depths - 1)]
    elif task.haystack == "essays":
        places = sorted(rng.choice(_DEPTHS, len(facts), replace=False).tolist())
    else:
        places = sorted(rng.random(len(facts)).tolist())
    needles = [needle(task, *facts[place]) for place in order]
    depth = None
    if task.answers == 1:
        depth = places[[facts[place][0] for place in order].index(keys[asked[0]])]
    answers = tuple(value for place in asked for value in values[place])
    return _Drawn([keys[place] for place in asked], answers, needles, places, depth)


def _distinct(task: Task, count: int, rng: np.random.Generator) -> list[str]:
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[draw(task.key, rng)] = None
    return list(keys)


@dataclass(frozen=True)
class _Haystack:
    """Sentences, what joins them, and the characters of the text up to the end of each (without what joins)."""

    sentences: Sequence[str]
    joint: str
    ends: Sequence[int]

    @classmethod
    def of(cls, task: Task, essays: Sequence[str], tokens: int) -> "_Haystack":
        """Noise or essays, from the beginning again where they end, of more than `tokens` tokens."""
        sentences = essays if task.haystack == "essays" else [NOISE]
        joint = " " if task.haystack == "essays" else "\n"
        characters = sum(len(sentence) + 1 for sentence in sentences)
        times = 1 + tokens * _CHARACTERS_PER_TOKEN // characters
        return cls.joined([*sentences] * times, joint)

    @classmethod
    def of_needles(cls, task: Task, asked: list[str], tokens: int, rng: np.random.Generator) -> "_Haystack":
        """Facts on keys that are not asked, of more than `tokens` tokens."""
        sentences, characters = [], 0
        while characters < tokens * _CHARACTERS_PER_TOKEN:
            key = draw(task.key, rng)
            if key not in asked:
                sentences.append(needle(task, key, draw(task.value, rng)))
                characters += len(sentences[-1]) + 1
        return cls.joined(sentences, "\n")

    @classmethod
    def joined(cls, sentences: Sequence[str], joint: str) -> "_Haystack":
        ends = list(accumulate((len(sentence) + 1 for sentence in sentences), initial=-1))[1:]
        return cls(sentences, joint, ends)

    def cut(self, characters: int) -> list[str]:
        """The first `characters` characters as sentences, the last of which may be cut short."""
        whole = int(np.searchsorted(self.ends, characters, side="right"))
        rest = characters - (self.ends[whole - 1] + 1 if whole else 0)
        return [*self.sentences[:whole], *([self.sentences[whole][:rest]] if rest > 0 else [])]


_CHARACTERS_PER_TOKEN = 8
"""More than any tokenizer makes of such text."""


def _context(drawn: _Drawn, haystack: _Haystack, characters: int) -> str:
    """The haystack's first `characters` characters with the needles at their places, each between two sentences."""
    sentences = haystack.cut(characters)
    parts, done = [], 0
    for text, place in zip(drawn.needles, drawn.places, strict=True):
        until = int(place * len(sentences))
        parts += [*sentences[done:until], text]
        done = until
    return haystack.joint.join([*parts, *sentences[done:]])


def _fill(
    task: Task, drawn: _Drawn, haystack: _Haystack, encode: Encode, limit: int, guess: int | None, index: int
) -> tuple[Sample | None, int]:
    """The sample whose prompt has `limit` tokens, or as near below as its text allows, and its haystack's characters.

    None, and the tokens without a haystack, where even that is too long. guess: characters that fitted another sample.
    """

    def attempt(characters: int) -> Sample:
        text, start = prompt(task, _context(drawn, haystack, characters), drawn.keys)
        tokens = tuple(encode(f"{text} {start}"))
        return Sample(index, text, start, drawn.answers, tokens, drawn.depth)

    empty = attempt(0)
    if len(empty.tokens) > limit:
        return None, len(empty.tokens)
    characters, best = _longest(attempt, empty, haystack.ends[-1], limit, guess)
    for fewer in range(characters - 1, max(0, characters - _LAST_CHARACTERS), -1):
        if len(best.tokens) == limit:
            break
        shorter = attempt(fewer)
        if len(best.tokens) < len(shorter.tokens) <= limit:  # fewer characters may be more tokens
            characters, best = fewer, shorter
    return best, characters


def _longest(
    attempt: Callable[[int], Sample], empty: Sample, most: int, limit: int, guess: int | None
) -> tuple[int, Sample]:
    """The first haystack found whose sample fits exactly, else the longest that fits.

    Newton's steps with the characters per token seen so far, kept between one that fits and one that does not.
    """
    low, fits, high = 0, empty, most
    per_token = _CHARACTERS_PER_TOKEN / 2
    size = guess or 1 + round((limit - len(empty.tokens)) * per_token)
    while high - low > 1 and len(fits.tokens) < limit:
        if not low < size < high:
            size = (low + high) // 2
        tried = attempt(size)
        missing = limit - len(tried.tokens)
        if missing >= 0:
            low, fits = size, tried
        else:
            high = size
        per_token = size / max(1, len(tried.tokens) - len(empty.tokens))
        size += round(missing * per_token) or (1 if missing >= 0 else -1)
    return low, fits
