"""Answers in batches with shared beginnings against transformers' own generate, prompt by prompt."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from eval.answers.generation import batches, cache_bytes, generate, shared
from eval.answers.journal import Journal
from eval.answers.kv_cache import RoomyCache, RoomyLayer
from eval.answers.scoring import Question, end_tokens, score_answers
from eval.variants.loading import load_variant

NEW = 12


@pytest.fixture(scope="module")
def tokenizer(source: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(source)


@pytest.fixture(scope="module", params=["rope", "yarn", "dynamic_ntk", "longrope2", "drope", "drope_scaled"])
def loaded(request: pytest.FixtureRequest, source: Path, drope: Path) -> tuple[str, PreTrainedModel]:
    folder = drope if request.param.startswith("drope") else source
    factors = tuple(np.linspace(1, 2, 8)) if request.param == "longrope2" else ()
    model = load_variant(request.param, folder, 2, context=512, softmax_scale_c=0.3, factors=factors)
    return request.param, model


@pytest.fixture(scope="module")
def prompts(documents: list[list[int]]) -> list[list[int]]:
    """Of four lengths, some within the training context and some beyond; several that begin alike."""
    text = [token for document in documents for token in document]
    common = text[:400]
    ends = [text[900 + 40 * place : 1000 + 40 * place] for place in range(5)]
    alike = [[*common[: 400 - 30 * place], *end, *common[: 30 * place]] for place, end in enumerate(ends)]
    return [*alike, text[2000:2060], text[3000:3060], text[100:101], text[:700], [*text[:650], *text[5000:5050]]]


def own(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """transformers' greedy answer, which does not stop; a short text before it puts dynamic NTK back to its start."""
    ids = torch.tensor([prompt])
    model(ids[:, :1])
    tokens = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return tokens[0, len(prompt) :].tolist()


@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_answers_are_those_of_transformers(
    loaded: tuple[str, PreTrainedModel], prompts: list[list[int]], batch_tokens: int
) -> None:
    name, model = loaded
    reuse = name not in ("dynamic_ntk", "longrope2")
    given = {"new_tokens": NEW, "batch_tokens": batch_tokens, "stop": lambda *_: False, "reuse": reuse}
    answers = {index: answer for batch in generate(model, prompts, **given) for index, answer in batch}
    assert sorted(answers) == list(range(len(prompts)))
    for index, prompt in enumerate(prompts):
        assert answers[index] == own(model, prompt), f"prompt {index} of {len(prompt)} tokens"


def test_shared_beginnings_are_read_once(
    source: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_variant("rope", source, 1, context=512)
    read = []
    inner = model.model.forward

    def counted(*args: object, **kwargs: object) -> object:
        read.append(kwargs["input_ids"].numel())
        return inner(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", counted)
    alike = prompts[:5]
    for reuse in (True, False):
        read.clear()
        list(generate(model, alike, new_tokens=1, batch_tokens=4096, stop=lambda *_: True, reuse=reuse))
        total = sum(map(len, alike))
        beginning = 400 - 30 * 4
        assert sum(read) == (total - 4 * beginning if reuse else total)


def test_without_room_for_a_shared_beginning_none_is_kept(
    source: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts one at a time, each read from its start, and still in pieces; the answers are the same."""
    model = load_variant("rope", source, 1, context=512)
    given = {"new_tokens": NEW, "batch_tokens": 64, "stop": lambda *_: False}
    whole = dict(answer for batch in generate(model, prompts, **given) for answer in batch)
    longest = (max(map(len, prompts)) + NEW) * cache_bytes(model.config, 4)
    monkeypatch.setattr("eval.answers.generation.free_bytes", lambda device: longest * 3 // 2)
    read = []
    inner = model.model.forward
    model.model.forward = lambda *args, **kwargs: (read.append(kwargs["input_ids"].shape), inner(*args, **kwargs))[1]
    assert dict(answer for batch in generate(model, prompts, **given) for answer in batch) == whole
    assert sum(rows * tokens for rows, tokens in read if tokens > 1) in range(
        sum(map(len, prompts)) - len(prompts), sum(map(len, prompts)) + 1
    )
    assert max(rows * tokens for rows, tokens in read) <= 64


def test_caches_together_never_take_more_than_there_is(
    source: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a batch, whose predecessor is gone, and one of a shared beginning."""
    model = load_variant("rope", source, 1, context=512)
    one = (500 + NEW) * cache_bytes(model.config, 4)
    monkeypatch.setattr("eval.answers.generation.free_bytes", lambda device: 3 * one)
    caches, of = [], RoomyCache.of

    def watched(model: PreTrainedModel, rows: int, capacity: int) -> RoomyCache:
        cache = of(model, rows, capacity)
        caches.append(weakref.ref(cache))
        alive = [layer for each in caches if each() is not None for layer in each().layers]
        assert sum(layer.room.nbytes for layer in alive) <= 3 * one
        return cache

    monkeypatch.setattr(RoomyCache, "of", watched)
    given = {"new_tokens": NEW, "batch_tokens": 4096, "stop": lambda index, tokens: len(tokens) > index}
    assert len(list(generate(model, prompts[:5], **given))) == 3
    assert len(caches) == 4  # one of them the trunk's


def test_rows_are_dropped_layer_by_layer() -> None:
    layers = [RoomyLayer(torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 1, 4, 1) + n, 2) for n in (0, 100)]
    before = [layer.room.clone() for layer in layers]
    cache = RoomyCache(layers)
    cache.keep(torch.tensor([2, 0]))
    for layer, room in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.room, room[:, [2, 0]]) and torch.equal(layer.keys, room[0, [2, 0], :, :2])


def test_batches_hold_one_length_and_neighbours_begin_alike() -> None:
    prompts = [[5, 1, 1], [1, 2, 3, 4], [1, 2, 9, 9], [7, 7, 7, 7], [1, 2, 3, 5], [5, 1, 2]]
    assert list(batches(prompts, 2)) == [[0, 5], [1, 4], [2, 3]]
    assert list(batches(prompts, 1)) == [[0], [5], [1], [4], [2], [3]]
    assert list(batches([], 1)) == []


@pytest.mark.parametrize(
    ("left", "right", "size"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 4, 3], 1)]
)
def test_shared(left: list[int], right: list[int], size: int) -> None:
    assert shared(left, right) == size


def test_cache_bytes_are_those_of_keys_and_values(source: Path) -> None:
    model = load_variant("rope", source, 1, context=512)
    layers, kv_heads, width = 2, 4, 16
    assert cache_bytes(model.config, 4) == 2 * layers * kv_heads * width * 4


def test_an_answer_ends_where_it_may(source: Path, prompts: list[list[int]]) -> None:
    model = load_variant("rope", source, 1, context=512)
    answers = {}
    for batch in generate(
        model, prompts[:5], new_tokens=NEW, batch_tokens=4096, stop=lambda index, tokens: len(tokens) == 2 * index + 1
    ):
        answers |= dict(batch)
    for index in range(5):
        assert answers[index] == own(model, prompts[index])[: 2 * index + 1]


def asked(prompts: list[list[int]]) -> list[Question]:
    return [Question(tuple(prompt), len, False, {"number": index}) for index, prompt in enumerate(prompts)]


def test_kept_answers_are_not_asked_again(
    source: Path, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], tmp_path: Path
) -> None:
    model = load_variant("rope", source, 1, context=512)
    path = tmp_path / "units" / "x.answers"
    given = {"new_tokens": 4, "batch_tokens": 4096, "reuse": True}
    whole = score_answers(model, tokenizer, asked(prompts), Journal(path, "d"), **given)
    assert [record["number"] for record in whole] == list(range(len(prompts)))
    assert [record["value"] for record in whole] == [len(record["got"]) for record in whole]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:30])  # killed in the middle of a write
    journal = Journal(path, "d")
    assert len(journal.records) == 4
    read = []
    inner = model.model.forward
    model.model.forward = lambda *args, **kwargs: (read.append(kwargs["input_ids"].shape), inner(*args, **kwargs))[1]
    assert score_answers(model, tokenizer, asked(prompts), journal, **given) == whole
    assert sum(rows * tokens for rows, tokens in read if tokens > 1) < sum(map(len, prompts))
    read.clear()
    assert score_answers(model, tokenizer, asked(prompts), Journal(path, "d"), **given) == whole
    assert read == []
    assert not Journal(path, "another").records
    assert {json.loads(line)["digest"] for line in lines} == {"d"}


def test_the_end_token_ends_an_answer_and_a_full_score_does(
    source: Path, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], tmp_path: Path
) -> None:
    model = load_variant("rope", source, 1, context=512)
    assert end_tokens(model, tokenizer) == {tokenizer.eos_token_id}
    first = own(model, prompts[0])
    model.generation_config.eos_token_id = [first[3]]
    given = {"new_tokens": NEW, "batch_tokens": 4096, "reuse": True}
    (record,) = score_answers(model, tokenizer, asked(prompts[:1]), Journal(tmp_path / "a", "d"), **given)
    ended = first[: first.index(first[3])]
    assert record["got"] == tokenizer.decode(ended, skip_special_tokens=True)
    two = tokenizer.decode(first[:2])
    full = Question(tuple(prompts[0]), lambda text: float(two in text), True, {})
    (record,) = score_answers(model, tokenizer, [full], Journal(tmp_path / "b", "d"), **given)
    assert record["value"] == 1
    assert record["got"] == two
