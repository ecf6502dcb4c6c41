"""Keys and values: words of an adjective and a noun, numbers of seven digits, uuids; and the sentences of essays."""

import functools
import json
import re
import uuid
from pathlib import Path

import numpy as np

from eval.errors import EvaluationError
from eval.tasks.niah.tasks import Word

ESSAYS = "baber/paul_graham_essays"
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@functools.cache
def word_lists() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Adjectives and nouns of the wonderwords package, which RULER draws from."""
    from wonderwords import RandomWord

    words = RandomWord()
    adjectives, nouns = (tuple(sorted({*words.filter(include_categories=[kind])})) for kind in ("adjective", "noun"))
    return adjectives, nouns


def draw(kind: Word, rng: np.random.Generator) -> str:
    """One key or value."""
    if kind == "numbers":
        return str(rng.integers(10**6, 10**7))
    if kind == "uuids":
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))
    adjectives, nouns = word_lists()
    return f"{adjectives[rng.integers(len(adjectives))]}-{nouns[rng.integers(len(nouns))]}"


def read_essays(path: Path | None) -> tuple[str, ...]:
    """The sentences of the haystack of essays, white space made single spaces.

    Raises: EvaluationError where the file is missing or has no text, or the Hub's cache has not the essays.
    """
    texts = _hub_essays() if path is None else _texts(path)
    sentences = _SENTENCE.split(" ".join(" ".join(texts).split()))
    if not any(sentences):
        raise EvaluationError(f"niah.essays: {path} has no text; give a file with some")
    return tuple(sentences)


def _texts(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EvaluationError(f"niah.essays: {path} does not exist; give a .txt or .jsonl file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"niah.essays: {path}: cannot read it as text: {error}") from None
    if path.suffix != ".jsonl":
        return [text]
    texts = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            record = json.loads(line) if line.strip() else {"text": ""}
        except ValueError as error:
            raise EvaluationError(f"niah.essays: {path}:{number}: not JSON: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise EvaluationError(f"niah.essays: {path}:{number}: needs a text in field text")
        texts.append(record["text"])
    return texts


def _hub_essays() -> list[str]:
    from eval.tasks.hub import cached_split

    return list(cached_split(ESSAYS, None, "train", "niah.essays")["text"])
