import json
import sys
from collections.abc import Callable
from functools import cache

import numpy
import pytest

from data_prep.tokenizers import fast
from data_prep.tokenizers.adversarial import adversarial_texts
from data_prep.tokenizers.digits import DISPUTED, merge_digits
from data_prep.tokenizers.fast import BACKENDS, Unavailable, load_fast
from data_prep.tokenizers.reference import Tokenizer, load_tokenizer

SMOLLM, QWEN2, LLAMA2 = "smollm", "qwen2", "llama2"
TINY = "small"
PLACES = (SMOLLM, QWEN2, LLAMA2, TINY)
EQUAL = [("fastokens", place) for place in PLACES] + [("gigatoken", LLAMA2), ("tokie", LLAMA2)]
UNREADABLE = [("gigatoken", SMOLLM), ("gigatoken", TINY)]
# tokie finds <|end|> in the small model's vocabulary, whatever it is told: test_checked.py has it caught.
UNFAITHFUL = [("tokie", TINY)]
FAITHFUL = [(name, place) for name in BACKENDS for place in PLACES if (name, place) not in UNREADABLE + UNFAITHFUL]


@pytest.fixture(scope="module")
def load(tokenizer_of) -> Callable[[str], Tokenizer]:
    return cache(lambda place: load_tokenizer(tokenizer_of(place)))


@pytest.fixture(scope="module")
def texts(stories: list[str]) -> list[str]:
    return stories


@pytest.mark.parametrize(("name", "place"), EQUAL)
def test_ids_equal_the_reference(load, texts: list[str], name: str, place: str):
    reference = load(place)
    documents = texts + adversarial_texts(reference.special_tokens)
    expected, got = reference.encode_flat(documents), load_fast(name, reference).encode_flat(documents)
    assert (got.ids.dtype, got.offsets.dtype) == (numpy.uint32, numpy.int64)
    assert numpy.array_equal(got.offsets, expected.offsets) and numpy.array_equal(got.ids, expected.ids)


@pytest.mark.parametrize(("name", "place"), FAITHFUL)
def test_special_names_never_become_special_ids(load, name: str, place: str):
    reference = load(place)
    forms = ("{}", "a{}b", "a {} b", "\n{}\n", "{0}{0}", "{0} {0}")
    documents = [form.format(token) for token in reference.special_tokens for form in forms]
    got = load_fast(name, reference).encode_flat(documents)
    assert len(got.ids) > len(documents) and len(reference.special_ids) >= 2
    assert not reference.special_ids & set(got.ids.tolist())


@pytest.mark.parametrize(("name", "place"), EQUAL)
def test_empty_texts_and_batches_have_their_place(load, name: str, place: str):
    backend = load_fast(name, load(place))
    nothing = backend.encode_flat([])
    assert len(nothing.ids) == 0 and nothing.offsets.tolist() == [0]
    assert backend.encode_flat([""]).offsets.tolist() == [0, 0]
    alone = backend.encode_flat(["word"]).ids
    got = backend.encode_flat(["", "word", "", "", "word", ""])
    length = len(alone)
    assert got.offsets.tolist() == [0, 0, length, length, length, 2 * length, 2 * length]
    assert numpy.array_equal(got.document(1), alone) and numpy.array_equal(got.document(4), alone)


@pytest.mark.parametrize(("name", "place"), UNREADABLE)
def test_a_tokenizer_that_the_library_cannot_read(load, name: str, place: str):
    with pytest.raises(Unavailable, match="cannot read the tokenizer"):
        load_fast(name, load(place))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_library_that_is_not_installed(load, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unavailable, match=r"not installed \(.*\); \S*pip install .*\[fast\]'"):
        load_fast(name, load(TINY))


def test_each_text_is_equal_alone_too(load, texts: list[str]):
    """In one batch, neighbours of a text with a byte that the vocabulary lacks take fastokens' slower path with it."""
    reference = load(SMOLLM)
    documents = texts + adversarial_texts(reference.special_tokens)
    backend, expected = load_fast("fastokens", reference), reference.encode_flat(documents)
    wrong = [
        text
        for position, text in enumerate(documents)
        if not numpy.array_equal(backend.encode_flat([text]).ids, expected.document(position))
    ]
    assert wrong == []


def test_disputed_characters_and_lacking_bytes_leave_the_fast_path(load):
    reference = load(SMOLLM)
    backend = load_fast("fastokens", reference)
    for character in (*DISPUTED, "\x04", "\U00040000"):
        batch = [f"12 {character}3", "plain", f"a{character} {character}b"]
        assert numpy.array_equal(backend.encode_flat(batch).ids, reference.encode_flat(batch).ids), ascii(character)


@pytest.mark.parametrize(("place", "has_both"), [(SMOLLM, True), (QWEN2, False), (LLAMA2, False), (TINY, False)])
def test_only_digits_then_bytes_become_one_pattern(load, place: str, has_both: bool):
    assert (merge_digits(load(place).fast_json) is not None) == has_both


def test_digits_in_groups_do_not_become_one_pattern(load):
    content = json.loads(load(SMOLLM).fast_json)
    content["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
    assert merge_digits(json.dumps(content)) is None


def test_gigatoken_gives_the_same_ids_when_it_starts_anew(load, texts: list[str], monkeypatch: pytest.MonkeyPatch):
    reference = load(LLAMA2)
    backend = load_fast("gigatoken", reference)
    monkeypatch.setattr(fast, "GIGATOKEN_BYTES", 1000)
    built = set()
    for start in range(0, 40, 10):
        batch = texts[start : start + 10]
        assert numpy.array_equal(backend.encode_flat(batch).ids, reference.encode_flat(batch).ids)
        built.add(id(backend._library))
    assert len(built) > 1


@pytest.mark.parametrize("name", BACKENDS)
def test_the_name_tells_the_version(load, name: str):
    library, version = load_fast(name, load(LLAMA2)).name.split(" ")
    assert library == name and version[0].isdigit()
