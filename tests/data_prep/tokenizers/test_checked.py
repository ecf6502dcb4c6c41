import logging
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy
import pytest

from data_prep.errors import DataError
from data_prep.tokenizers.adversarial import adversarial_texts
from data_prep.tokenizers.checked import CheckedEncoder, Difference, choose
from data_prep.tokenizers.fast import BACKENDS, FastBackend, load_fast
from data_prep.tokenizers.reference import Tokenizer, load_tokenizer
from data_prep.tokenizers.tokens import Tokens

SMOLLM, QWEN2, LLAMA2, TINY = "smollm", "qwen2", "llama2", "small"


class Broken:
    """A real backend with a fault: what it does to texts that have a certain word in them."""

    def __init__(self, backend: FastBackend, word: str, fault: Callable[[Tokens, int], Tokens]):
        self.name = f"broken {backend.name}"
        self._backend, self._word, self._fault = backend, word, fault

    def encode_flat(self, texts: list[str]) -> Tokens:
        tokens = self._backend.encode_flat(texts)
        for position, text in enumerate(texts):
            if self._word in text:
                tokens = self._fault(tokens, position)
        return tokens


class PanicException(BaseException):
    """What a panic in Rust looks like from Python; the bindings give every library a class of this name."""


def _another_id(tokens: Tokens, position: int) -> Tokens:
    ids = tokens.ids.copy()
    ids[tokens.offsets[position] + 1] += 1
    return Tokens(ids, tokens.offsets)


def _one_less(tokens: Tokens, position: int) -> Tokens:
    end = tokens.offsets[position + 1]
    offsets = tokens.offsets.copy()
    offsets[position + 1 :] -= 1
    return Tokens(numpy.delete(tokens.ids, end - 1), offsets)


def _end_of_sequence(tokens: Tokens, position: int) -> Tokens:
    ids = tokens.ids.copy()
    ids[tokens.offsets[position]] = 0
    return Tokens(ids, tokens.offsets)


def _beyond_the_vocabulary(tokens: Tokens, position: int) -> Tokens:
    ids = tokens.ids.copy()
    ids[tokens.offsets[position]] = 2**31
    return Tokens(ids, tokens.offsets)


def _panic(tokens: Tokens, position: int) -> Tokens:
    raise PanicException("index out of bounds\nnote: run with a backtrace")


def _error(tokens: Tokens, position: int) -> Tokens:
    raise ValueError("cannot encode this")


def _interrupt(tokens: Tokens, position: int) -> Tokens:
    raise KeyboardInterrupt


def _document_missing(tokens: Tokens, position: int) -> Tokens:
    return Tokens(tokens.ids, tokens.offsets[:-1])


@pytest.fixture(scope="module")
def load(tokenizer_of) -> Callable[[str], Tokenizer]:
    return cache(lambda place: load_tokenizer(tokenizer_of(place)))


@pytest.fixture(scope="module")
def smollm(load) -> Tokenizer:
    return load(SMOLLM)


@pytest.fixture
def marked(stories: list[str]) -> list[str]:
    """30 stories; the word is in the 18th alone."""
    assert not any("zebra" in story for story in stories)
    return [*stories[:17], "A story of one zebra. " + stories[17], *stories[18:30]]


@pytest.mark.parametrize("place", [SMOLLM, QWEN2, LLAMA2, TINY])
def test_auto_finds_a_library_that_equals_the_reference(load, stories: list[str], place: str):
    choice = choose(load(place), "auto", stories[:30])
    assert choice.backend.name.split()[0] in set(BACKENDS) - set(choice.refused)
    texts = stories[30:] + adversarial_texts(load(place).special_tokens)
    encoder = CheckedEncoder(load(place), choice.backend, check_fraction=1)
    encoder.encode_flat(texts)
    assert encoder.documents_checked == len(texts)


def test_auto_tells_whom_it_chose_and_why_others_not(smollm, stories, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="data_prep.tokenizers.checked"):
        choice = choose(smollm, "auto", stories[:30])
    assert choice.backend.name.startswith("fastokens") and set(choice.refused) == {"gigatoken", "tokie"}
    assert choice.backend.name in caplog.text
    assert all(reason in caplog.text for reason in choice.refused.values())


def test_the_fastest_of_equals_is_chosen(load, stories: list[str], monkeypatch: pytest.MonkeyPatch):
    """tokie equals sentencepiece on Llama 2 but is the slowest by far; alone, it is chosen."""
    assert not choose(load(LLAMA2), "auto", stories[:100]).backend.name.startswith("tokie")
    for name in ("fastokens", "gigatoken"):
        monkeypatch.setitem(sys.modules, name, None)
    choice = choose(load(LLAMA2), "auto", stories[:30])
    assert choice.backend.name.startswith("tokie") and set(choice.refused) == {"fastokens", "gigatoken"}


def test_tokie_is_refused_for_smollm_with_the_document_named(smollm, stories: list[str]):
    with pytest.raises(
        DataError, match=r"'tokie' cannot stand in for tokenizers .* in the document '.*use auto"
    ) as caught:
        choose(smollm, "tokie", stories[:30])
    assert "\n" not in str(caught.value)


def _replace(monkeypatch: pytest.MonkeyPatch, word: str, fault: Callable[[Tokens, int], Tokens]) -> None:
    """Let fastokens with a fault stand under tokie's name."""
    real = BACKENDS["fastokens"]
    monkeypatch.setitem(BACKENDS, "tokie", lambda tokenizer_json: Broken(real(tokenizer_json), word, fault))


def test_a_document_of_the_sample_alone_refuses(smollm, marked: list[str], monkeypatch: pytest.MonkeyPatch):
    _replace(monkeypatch, "zebra", _another_id)
    assert choose(smollm, "tokie", marked[:17]).backend.name.startswith("broken")
    with pytest.raises(DataError, match="'A story of one zebra"):
        choose(smollm, "tokie", marked)


def test_a_library_that_fails_on_the_adversarial_texts_is_refused(smollm, stories, monkeypatch: pytest.MonkeyPatch):
    _replace(monkeypatch, "👩‍👩‍👧‍👦", _panic)
    assert "failed (index out of bounds)" in choose(smollm, "auto", stories[:5]).refused["tokie"]


def test_reference_alone_is_asked_for(smollm):
    choice = choose(smollm, "reference", ["text"])
    assert choice.backend is None and choice.refused == {}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_named_library_that_is_missing_is_an_error(smollm, stories, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=f"'{name}' cannot .*not installed"):
        choose(smollm, name, stories[:5])


def test_auto_without_any_library_is_the_reference(smollm, stories, monkeypatch: pytest.MonkeyPatch):
    for name in BACKENDS:
        monkeypatch.setitem(sys.modules, name, None)
    choice = choose(smollm, "auto", stories[:5])
    assert choice.backend is None and set(choice.refused) == set(BACKENDS)
    encoder = CheckedEncoder(smollm, choice.backend, check_fraction=1)
    assert numpy.array_equal(encoder.encode_flat(stories).ids, smollm.encode_flat(stories).ids)
    assert encoder.documents_checked == 0


@pytest.mark.parametrize("fault", [_another_id, _one_less, _end_of_sequence, _beyond_the_vocabulary])
def test_one_wrong_id_is_caught_and_its_document_named(smollm, marked: list[str], fault):
    broken = Broken(load_fast("fastokens", smollm), "zebra", fault)
    encoder = CheckedEncoder(smollm, broken, check_fraction=1)
    encoder.encode_flat(marked[:17])
    with pytest.raises(Difference, match=r"broken fastokens .*'A story of one zebra") as caught:
        encoder.encode_flat(marked)
    assert encoder.documents_checked == 17
    assert (caught.value.position, caught.value.document) == (17, marked[17]) and "\n" not in str(caught.value)
    assert caught.value.expected.tolist() == smollm.encode_batch([marked[17]])[0]
    assert caught.value.got.tolist() != caught.value.expected.tolist()


@pytest.mark.parametrize("fault", [_end_of_sequence, _beyond_the_vocabulary])
def test_a_special_id_is_caught_in_documents_that_are_not_compared(smollm, marked: list[str], fault):
    broken = Broken(load_fast("fastokens", smollm), "zebra", fault)
    with pytest.raises(Difference, match=r"id 0 is .* in the document 'A story of one zebra"):
        CheckedEncoder(smollm, broken, check_fraction=0).encode_flat(marked)


@pytest.mark.parametrize("fault", [_panic, _error])
def test_a_library_that_fails_is_a_difference(smollm, marked: list[str], fault):
    broken = Broken(load_fast("fastokens", smollm), "zebra", fault)
    with pytest.raises(Difference, match=r"failed \(.*\) in the document 'A story of one zebra") as caught:
        CheckedEncoder(smollm, broken, check_fraction=0).encode_flat(marked)
    assert caught.value.got is None and caught.value.position == 17 and "\n" not in str(caught.value)
    assert caught.value.expected.tolist() == smollm.encode_batch([marked[17]])[0]


def test_an_interrupt_is_no_fault_of_the_library(smollm, marked: list[str]):
    broken = Broken(load_fast("fastokens", smollm), "zebra", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        CheckedEncoder(smollm, broken, check_fraction=1).encode_flat(marked)


def test_a_result_of_the_wrong_shape_is_a_difference(smollm, marked: list[str]):
    broken = Broken(load_fast("fastokens", smollm), "zebra", _document_missing)
    with pytest.raises(Difference, match=r"gave 29 documents .* for 30 documents"):
        CheckedEncoder(smollm, broken, check_fraction=0).encode_flat(marked)


def test_real_faults_of_a_real_library_are_caught_while_running(load, stories: list[str]):
    """Long runs of spaces go wrong for SmolLM, and the small one's <|end|> becomes the special id."""
    smollm, tiny = load(SMOLLM), load(TINY)
    encoder = CheckedEncoder(smollm, load_fast("tokie", smollm), check_fraction=1)
    encoder.encode_flat(stories)
    with pytest.raises(Difference, match="in the document 'spaces  "):
        encoder.encode_flat([*stories, "spaces" + " " * 10_000])
    with pytest.raises(Difference, match=r"in the document 'a<\|end\|>b'"):
        CheckedEncoder(tiny, load_fast("tokie", tiny), check_fraction=0).encode_flat([*stories, "a<|end|>b"])


def test_a_share_of_the_documents_is_compared_and_always_the_same(smollm):
    texts = [f"document number {number}" for number in range(20_000)]
    backend = load_fast("fastokens", smollm)

    def checked(batches: list[list[str]], fraction: float) -> int:
        encoder = CheckedEncoder(smollm, backend, fraction)
        for batch in batches:
            encoder.encode_flat(batch)
        return encoder.documents_checked

    tenth = checked([texts], 0.1)
    assert 1_800 < tenth < 2_200
    assert checked([texts[i : i + 300] for i in range(0, len(texts), 300)][::-1], 0.1) == tenth
    assert checked([texts], 0) == 0 and checked([texts[:500]], 1) == 500


def test_text_that_the_reference_itself_makes_a_special_id_is_refused(tiny_model: Path):
    """A word-level vocabulary knows the word <eos>, and its unknown token stands for any other word."""
    encoder = CheckedEncoder(load_tokenizer(tiny_model), None, check_fraction=0)
    assert encoder.encode_flat(["w1 nowhere w2"]).ids.tolist() == [3, 0, 4]
    with pytest.raises(DataError, match=r"special id 1 out of a document's text, 'w3 <eos> w4'"):
        encoder.encode_flat(["w1", "w3 <eos> w4"])
