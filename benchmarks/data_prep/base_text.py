"""Real English text, taken apart into sentences, and words that nobody has seen."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from random import Random

SENTENCE_END = re.compile(r"(?<=[.!?\"”])\s+(?=[A-Z\"“])")
SPACED_MARKS = re.compile(r" ([,.;:!?)\]%]|'s\b|'t\b)|([(\[]) | @([-,.])@ ")
WORD_POOL = 200_000


def sentences(text_folder: Path, hellaswag: Path) -> list[list[str]]:
    """Sentences of TinyStories, WikiText-2 (its spacing undone) and HellaSwag (with the right ending), as their words.

    WikiText's <unk> stays, to be replaced by an unseen word.
    """
    result: list[list[str]] = []
    for text in _documents(text_folder, hellaswag):
        result.extend(words for words in map(str.split, SENTENCE_END.split(text)) if len(words) >= 3)
    return result


def _documents(text_folder: Path, hellaswag: Path) -> Iterator[str]:
    for file in sorted(text_folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["text"]
    for file in sorted(text_folder.glob("*.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith(" ="):
                yield SPACED_MARKS.sub(lambda result: next(filter(None, result.groups())), line)
    for line in hellaswag.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        yield f"{record['query']} {record['choices'][record['gold']]}"


class UnseenWords:
    """Words made of random letters: lengths and letters as frequent as in `words`; one in four a number, one a name."""

    def __init__(self, words: Counter[str], seed: int) -> None:
        self._random = Random(seed)
        self._words = words

    @cached_property
    def _letters(self) -> tuple[list[str], list[int]]:
        letters: Counter[str] = Counter()
        for word, count in self._words.items():
            for letter in filter(str.isascii, filter(str.isalpha, word.lower())):
                letters[letter] += count
        return list(letters), list(letters.values())

    @cached_property
    def _lengths(self) -> tuple[list[int], list[int]]:
        lengths: Counter[int] = Counter()
        for word, count in self._words.items():
            # Shorter words than these would soon be words that were seen before.
            lengths[min(max(len(word), 5), 14)] += count
        return list(lengths), list(lengths.values())

    def __iter__(self) -> Iterator[str]:
        letters, letter_counts = self._letters
        lengths, length_counts = self._lengths
        while True:
            stream = self._random.choices(letters, letter_counts, k=14 * WORD_POOL)
            for index, length in enumerate(self._random.choices(lengths, length_counts, k=WORD_POOL)):
                if index % 4 == 0:
                    yield str(self._random.randrange(10 ** (length - 1), 10**length))
                    continue
                word = "".join(stream[14 * index : 14 * index + length])
                yield word.capitalize() if index % 4 == 1 else word
