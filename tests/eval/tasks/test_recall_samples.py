import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from eval.config import RecallConfig
from eval.errors import EvaluationError
from eval.tasks.recall_samples import load_words, recall_samples, split_answer

KEYS = tuple(f"k{i}" for i in range(12))
VALUES = tuple(f"v{i}" for i in range(8))
NO_TEXT = np.empty(0, np.int64)


def word_config(**changes: object) -> RecallConfig:
    fields = {"samples": 30, "needles": 3, "fact": "{key} {value}", "question": "{key}", "keys": KEYS, "values": VALUES}
    return RecallConfig(**{**fields, **changes})


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(("<unk>", *KEYS, *VALUES, "is"))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("length", [8, 9, 64, 65])
def test_words_every_sample_has_its_needles_once(words: PreTrainedTokenizerFast, length: int) -> None:
    samples = recall_samples(word_config(), words.encode, NO_TEXT, length, 0)
    assert samples.tokens.shape == (30, length)
    assert (samples.answer_starts == length - 1).all()
    for row, key, value, depth in zip(samples.tokens, samples.keys, samples.values, samples.depths, strict=True):
        text = words.convert_ids_to_tokens(row.tolist())
        assert text[-2:] == [key, value]
        stated = text.index(key)
        assert (text[stated + 1], stated / length) == (value, depth)
        assert Counter(text[:-2])[key] == 1, "the fact asked for is stated exactly once"
        pairs = text[length % 2 : -2]
        facts = dict(zip(pairs[::2], pairs[1::2], strict=True))
        assert all(facts[k] == v for k, v in zip(pairs[::2], pairs[1::2], strict=True)), (
            "a key has one value throughout"
        )
        once = [k for k in facts if Counter(pairs)[k] == 1]
        assert len(once) >= 3


def test_depths_and_questions_vary(words: PreTrainedTokenizerFast) -> None:
    samples = recall_samples(word_config(samples=300), words.encode, NO_TEXT, 64, 0)
    assert set(samples.keys) == set(KEYS)
    assert set(samples.values) == set(VALUES)
    counts, _ = np.histogram(samples.depths, bins=4, range=(0, 1))
    assert counts.min() > 45, "depths are spread over the sample"


def test_other_keys_bounds_the_haystack(words: PreTrainedTokenizerFast) -> None:
    samples = recall_samples(word_config(other_keys=2), words.encode, NO_TEXT, 64, 0)
    for row in samples.tokens:
        assert len({word for word in words.convert_ids_to_tokens(row.tolist()) if word in KEYS}) <= 5


def test_same_arguments_same_samples(words: PreTrainedTokenizerFast) -> None:
    first, again = (recall_samples(word_config(), words.encode, NO_TEXT, 64, 5) for _ in range(2))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    fewer = recall_samples(word_config(samples=7), words.encode, NO_TEXT, 64, 5)
    np.testing.assert_array_equal(first.tokens[:7], fewer.tokens)
    other = recall_samples(word_config(), words.encode, NO_TEXT, 64, 6)
    assert not np.array_equal(first.tokens, other.tokens)


NATURAL = {
    "fact": "The toy of {key} is a {value}. ",
    "question": "The toy of {key} is a",
    "keys": ("Tom", "Lily", "Ben", "Sue", "Max", "Anna"),
    "values": ("ball", "red car", "doll", "big blue boat", "7"),
}


@pytest.mark.parametrize("haystack", ["facts", "text"])
@pytest.mark.parametrize("length", [100, 101, 512])
def test_real_tokenizer_exact_length_and_readable(
    source: Path, documents: list[list[int]], haystack: str, length: int
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = RecallConfig(samples=20, needles=2, haystack=haystack, **NATURAL)
    text = np.concatenate(documents)
    samples = recall_samples(
        config, lambda t: tokenizer.encode(t, add_special_tokens=False), text, length, 3, (tokenizer.bos_token_id,)
    )
    assert samples.tokens.shape == (20, length)
    assert (samples.tokens[:, 0] == tokenizer.bos_token_id).all()
    for row, start, key, value in zip(samples.tokens, samples.answer_starts, samples.keys, samples.values, strict=True):
        assert tokenizer.decode(row[start:].tolist()).strip().removeprefix("is ").removeprefix("a ") == value
        decoded = tokenizer.decode(row.tolist()).strip()
        assert decoded.endswith(f"The toy of {key} is a {value}")
        assert decoded.count(f"The toy of {key} is a {value}") == 2


@pytest.mark.parametrize("name", ["small", "smollm2"])
def test_question_and_answer_are_the_whole_text(source: Path, smollm2: Path, name: str) -> None:
    """The small model's tokenizer has merges across words ("is a"): where one is cut, it is the answer's."""
    tokenizer = AutoTokenizer.from_pretrained(source if name == "small" else smollm2)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def joined_with(value: str) -> str:
        if source.name == "tinystories-656k":
            return "a " if value == "big blue boat" else ""
        return "is a "

    for value in ("ball", "big blue boat", "7", "4812"):
        for asked in ("The toy is a", "The toy is a ", "Toy:\n"):
            question, answer = split_answer(encode, asked, value)
            of_both = joined_with(value) if name == "small" and "is a" in asked else ""
            answered = tokenizer.decode(answer).strip()
            assert answered == of_both + value or (source.name != "tinystories-656k" and answered == value)
            space = asked[len(asked.rstrip()) :] or " "
            assert [*question, *answer] == encode(asked.rstrip() + space + value)


def test_too_short_a_length_is_refused(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EvaluationError, match="3 needles and the question take 8 tokens, the length is 7"):
        recall_samples(word_config(), words.encode, NO_TEXT, 7, 0)


def test_too_little_text_is_refused(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EvaluationError, match="needs 56 held-out tokens, there are 10"):
        recall_samples(word_config(haystack="text"), words.encode, np.zeros(10, np.int64), 64, 0)


def test_words_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"keys": KEYS, "values": VALUES}))
    assert load_words(word_config(keys=path, values=path)) == (KEYS, VALUES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"recall\.keys: .*words\.json does not exist; give a JSON file or the keys"),
        ("not json", r"recall\.keys: .*words\.json: unknown format, not JSON: \w"),
        ('["a"]', 'needs "keys": a list of words, none empty'),
        ('{"keys": [1]}', 'needs "keys": a list of words, none empty'),
        ('{"keys": ["a", "a"]}', r"words\.json: has a word twice"),
        ('{"keys": ["a", "b", "c"]}', "3 keys for 3 needles in a haystack of facts; give at least 4"),
    ],
)
def test_bad_words_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "words.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        load_words(word_config(keys=path))
