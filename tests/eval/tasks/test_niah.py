"""Needle samples: exact lengths, what stands in them, and RULER's own generator in lm-eval beside ours."""

import importlib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from eval.config import NIAH_TASKS, NiahConfig, NiahTask
from eval.errors import EvaluationError
from eval.tasks.niah.files import load_or_draw
from eval.tasks.niah.samples import Sample, draw_samples
from eval.tasks.niah.scoring import process_results, string_match
from eval.tasks.niah.tasks import NOISE, TASKS
from eval.tasks.niah.words import read_essays, word_lists

NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids|words) for (.+?) is: (\S+)\.")


@pytest.fixture(scope="module")
def essays(
    real_texts: list[str], extra_or_none: Callable[[str], Path | None], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ...]:
    """WikiText-2 where it is there, else the first sentences of docstrings."""
    if (wikitext := extra_or_none("text/wikitext2-valid.txt")) is not None:
        return read_essays(wikitext)
    path = tmp_path_factory.mktemp("essays") / "essays.txt"
    summaries = (" ".join(text.split("\n\n")[0].split()) for text in real_texts)
    path.write_text("\n\n".join(summaries), encoding="utf-8")
    return read_essays(path)


@pytest.fixture(scope="module")
def encoder_of(
    small_model: Path, smollm2: Path, extra_data: Callable[[str], Path]
) -> Callable[[str], Callable[[str], list[int]]]:
    from transformers import AutoTokenizer

    @cache
    def encoder(name: str) -> Callable[[str], list[int]]:
        folder = {"small": small_model, "smollm2": smollm2}.get(name) or extra_data(f"tokenizers/{name}")
        return AutoTokenizer.from_pretrained(folder).encode

    return encoder


@pytest.fixture(scope="module")
def encode(encoder_of: Callable[[str], Callable[[str], list[int]]]) -> Callable[[str], list[int]]:
    return encoder_of("smollm2")


@pytest.mark.parametrize("tokenizer", ["small", "smollm2", "llama2"])
@pytest.mark.parametrize("name", NIAH_TASKS)
def test_samples_fill_the_length_and_never_exceed_it(
    name: NiahTask, tokenizer: str, essays: tuple[str, ...], encoder_of: Callable[[str], Callable[[str], list[int]]]
) -> None:
    encode, config = encoder_of(tokenizer), NiahConfig(samples=8, new_tokens=64)
    samples = draw_samples(name, config, essays, encode, 1000, seed=0)
    lengths = [len(encode(f"{sample.prompt} {sample.prefix}")) for sample in samples]
    assert lengths == [len(sample.tokens) for sample in samples], "the whole text is tokenized, not pieces of it"
    assert max(lengths) <= 936
    assert min(lengths) >= 935, "one token short where no cut of the haystack makes it exact"
    assert lengths.count(936) >= 5


@pytest.mark.parametrize("name", NIAH_TASKS)
def test_every_answer_is_stated_once_and_others_are_not_asked(
    name: NiahTask, essays: tuple[str, ...], encode: Callable[[str], list[int]]
) -> None:
    task = TASKS[name]
    for sample in draw_samples(name, NiahConfig(samples=5), essays, encode, 1500, seed=1):
        facts = NEEDLE.findall(sample.prompt)
        asked = sample.prompt.rsplit("\n", 1)[1]
        stated = [value for key, value in facts if key in asked]
        assert sorted(stated) == sorted(sample.answers)
        assert len(sample.answers) == task.queries * task.values
        if task.haystack != "needles":
            assert len(facts) == task.keys * task.values


def test_depths_are_where_the_asked_needle_stands(essays: tuple[str, ...], encode: Callable[[str], list[int]]) -> None:
    for name in ("niah_single_2", "niah_multikey_1", "niah_depth", "lost_in_the_middle"):
        for sample in draw_samples(name, NiahConfig(samples=11), essays, encode, 3000, seed=0):
            context = sample.prompt[sample.prompt.index("\n") : sample.prompt.rindex("\n")]
            depth = context.index(f"is: {sample.answers[0]}") / len(context)
            assert depth == pytest.approx(sample.depth, abs=0.06), name


def test_swept_depths_come_in_turn(essays: tuple[str, ...], encode: Callable[[str], list[int]]) -> None:
    samples = draw_samples("niah_depth", NiahConfig(samples=7, depths=3), essays, encode, 600, seed=0)
    assert [sample.depth for sample in samples] == [0, 0.5, 1, 0, 0.5, 1, 0]


def test_samples_do_not_depend_on_how_many_there_are(
    essays: tuple[str, ...], encode: Callable[[str], list[int]]
) -> None:
    few, many = (draw_samples("niah_multikey_1", NiahConfig(samples=n), essays, encode, 800, seed=3) for n in (2, 6))
    assert [sample.answers for sample in few] == [sample.answers for sample in many[:2]]
    other = draw_samples("niah_multikey_1", NiahConfig(samples=2), essays, encode, 800, seed=4)
    assert {sample.answers for sample in other}.isdisjoint(sample.answers for sample in few)


def test_samples_in_essays_begin_alike(essays: tuple[str, ...], encode: Callable[[str], list[int]]) -> None:
    samples = draw_samples("niah_single_2", NiahConfig(samples=8), essays, encode, 4000, seed=0)
    last = max(samples, key=lambda sample: sample.depth)
    other = max((sample for sample in samples if sample is not last), key=lambda sample: sample.depth)
    alike = int((np.array(last.tokens[:3800]) != np.array(other.tokens[:3800])).argmax())
    assert alike / 3872 == pytest.approx(other.depth, abs=0.05)


def test_a_length_without_room_is_refused(essays: tuple[str, ...], encode: Callable[[str], list[int]]) -> None:
    with pytest.raises(EvaluationError, match=r"niah_multiquery takes \d+ tokens.*take larger context_factors, "):
        draw_samples("niah_multiquery", NiahConfig(samples=1), essays, encode, 200, seed=0)


def test_samples_are_kept_and_drawn_again_when_something_changed(
    tmp_path: Path, encode: Callable[[str], list[int]]
) -> None:
    calls: list[str] = []

    def counted(text: str) -> list[int]:
        calls.append(text)
        return encode(text)

    def load(**changes: object) -> list[Sample]:
        given = {"length": 400, "seed": 0, "digests": {"tokenizer": "t"}, **changes}
        return load_or_draw("niah_single_1", NiahConfig(samples=3), (), counted, factor=2, out_dir=tmp_path, **given)

    first = load()
    drawn = len(calls)
    assert load() == first
    assert len(calls) == drawn
    assert load(seed=1) != first
    assert len(calls) > drawn
    path = tmp_path / "niah" / "niah_single_1-2x.jsonl"
    path.write_text(path.read_text()[:-20])
    assert load(seed=0) == first
    drawn = len(calls)
    load(digests={"tokenizer": "another"})
    assert len(calls) > drawn


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "e.txt", r"e\.txt does not exist; give a \.txt or \.jsonl file"),
        ("  \n", "e.txt", r"e\.txt has no text; give a file with some"),
        ('{"text": "a"}\n{"txt": 1}\n', "e.jsonl", r"e\.jsonl:2: needs a text in field text"),
        ("{\n", "e.jsonl", r"e\.jsonl:1: not JSON: \w"),
    ],
)
def test_unusable_essays_are_one_line(tmp_path: Path, content: str | None, name: str, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=message) as caught:
        read_essays(path)
    assert "\n" not in str(caught.value)


def test_essays_that_are_nowhere_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EvaluationError, match=r"niah.essays: baber/paul_graham_essays is not in this machine's Hub"):
        read_essays(None)


# lm-eval's own generator. Its essays need the Hub and nltk's data; the two other haystacks run offline.


@pytest.fixture(scope="module")
def ruler() -> object:
    """lm-eval's module, which on import looks for data of nltk that these haystacks do not take."""
    import nltk

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nltk, "download", lambda *_, **__: False)
        return importlib.import_module("lm_eval.tasks.ruler.prepare_niah")


@pytest.mark.parametrize(
    ("name", "kind", "key", "value"),
    [
        ("niah_single_1", "repeat", "words", "numbers"),
        ("niah_multikey_2", "needle", "words", "numbers"),
        ("niah_multikey_3", "needle", "uuids", "uuids"),
    ],
)
def test_samples_are_like_those_of_lm_eval(
    name: NiahTask, kind: str, key: str, value: str, ruler: object, smollm2: Path
) -> None:
    from lm_eval.tasks.ruler.niah_utils import TEMPLATE
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    theirs = ruler.generate_samples(
        ruler.get_haystack(type_haystack=kind),
        TOKENIZER=tokenizer,
        max_seq_length=2048,
        template=TEMPLATE,
        type_haystack=kind,
        type_needle_k=key,
        type_needle_v=value,
        num_samples=60,
    )
    ours = draw_samples(name, NiahConfig(samples=60), (), tokenizer.encode, 2048, seed=0)
    shapes = (
        [shape(one["input"], one["gen_prefix"], one["outputs"]) for one in theirs],
        [shape(one.prompt, one.prefix, list(one.answers)) for one in ours],
    )
    assert {one["frame"] for one in shapes[0]} == {one["frame"] for one in shapes[1]}, "word for word"
    assert {line for one in shapes[1] for line in one["lines"]} <= {line for one in shapes[0] for line in one["lines"]}
    sizes = [np.mean([len(one["lines"]) for one in each]) for each in shapes]
    assert sizes[0] <= sizes[1] <= sizes[0] * 1.15 + 5, "ours fill the length, theirs go by 5 sentences"
    places = [[one["place"] for one in each] for each in shapes]
    assert ks_2samp(*places).pvalue > 0.01, "needles lie as evenly"


def shape(prompt: str, prefix: str, answers: list[str]) -> dict[str, object]:
    """A sample without what is drawn: the words around the haystack, the kinds of its lines, the needle's place."""
    first, *lines, last = prompt.split("\n")
    key = re.search(r"for (.+?) mentioned", last).group(1)
    place = next(index for index, line in enumerate(lines) if f"{answers[0]}." in line)
    whole = lines[:-1]  # the last of ours is cut
    kinds = [NEEDLE.sub("NEEDLE", line) for line in whole]
    assert set(kinds) <= {"NEEDLE", NOISE}
    frame = (first, last.replace(key, "KEY"), prefix.replace(key, "KEY"))
    return {"frame": frame, "lines": kinds, "place": place / len(lines)}


def test_words_are_those_of_lm_eval(ruler: object) -> None:
    adjectives, nouns = word_lists()
    assert set(adjectives) == set(ruler.adjs)
    assert set(nouns) == set(ruler.nouns)


def test_scores_are_those_of_lm_eval() -> None:
    from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all

    rng = np.random.default_rng(0)
    for _ in range(200):
        values = [str(number) for number in rng.integers(10, 99, rng.integers(1, 5))] + ["Abc-d"]
        answer = " ".join(str(number) for number in rng.integers(10, 99, 30)) + rng.choice([" aBC-D\n", "\x07 x ", ""])
        expected = string_match_all(postprocess_pred([answer]), [values])
        assert string_match(answer, values) == pytest.approx(expected)
        assert process_results({"outputs": values}, [answer]) == {"string_match": pytest.approx(expected)}


def test_lm_eval_reads_the_samples(tmp_path: Path, encode: Callable[[str], list[int]]) -> None:
    from lm_eval.tasks import TaskManager

    samples = load_or_draw(
        "niah_multikey_2", NiahConfig(samples=3), (), encode, factor=1, length=500, seed=0, digests={}, out_dir=tmp_path
    )
    task = TaskManager(include_path=str(tmp_path / "niah"), include_defaults=False).load_task_or_group(
        "niah_multikey_2-1x"
    )["niah_multikey_2-1x"]
    task.build_all_requests(limit=None)
    asked = [instance.args[0] for instance in task.instances]
    assert asked == [f"{sample.prompt} {sample.prefix}" for sample in samples]
    assert task.process_results(task.test_docs()[0], [f"it is {samples[0].answers[0]}"]) == {"string_match": 1.0}
    lines = (tmp_path / "niah" / "niah_multikey_2-1x.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["outputs"] == list(samples[0].answers)
