import json
from itertools import pairwise
from pathlib import Path

import numpy
import pytest

from data_prep.artifact import ShardSet, Split
from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.megatron import IndexedDataset
from data_prep.plan import token_budgets
from data_prep.prepare import check, run
from data_prep.rows import build_rows
from data_prep.shards import document_lengths
from data_prep.tokenizers.reference import load_tokenizer
from data_prep.work import held_out
from foundation.errors import DiskError


def prepare(out: Path, tokenizer: Path, *paths: Path, vocab: int = 2048, **options: object) -> ShardSet:
    sources = [{"path": str(path)} for path in paths]
    config = DataConfig.model_validate({"sources": sources, "row_length": 64, "validation_fraction": 0.1} | options)
    return run(config, tokenizer=tokenizer, model_vocab_size=vocab, out_dir=out)


def read(folder: Path, split: Split) -> list[list[int]]:
    """The documents of a split, by Megatron-core's own reader."""
    return [ids.tolist() for shard in split.shards for ids in IndexedDataset(str(folder / shard.prefix))]


@pytest.fixture
def corpus(tmp_path: Path, stories: list[str], write_jsonl) -> Path:
    return write_jsonl(tmp_path / "stories.jsonl", stories)


def test_shards_hold_exactly_the_documents_each_with_eos(tmp_path, corpus, stories, tiny_tokenizer):
    from transformers import PreTrainedTokenizerFast

    shards = prepare(tmp_path / "out", tiny_tokenizer, corpus)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tiny_tokenizer / "tokenizer.json"))
    expected = {True: [], False: []}
    for text in stories:
        expected[held_out(text.encode(), 0.1)].append([*reference.encode(text, add_special_tokens=False), 2])
    source = shards.sources[0]
    assert read(tmp_path / "out", source.train) == expected[False]
    assert read(tmp_path / "out", source.validation) == expected[True]
    assert source.train.tokens == sum(map(len, expected[False]))
    assert source.counts.model_dump() == {
        "documents": len(stories),
        "kept": len(stories),
        "empty": 0,
        "rejected": 0,
        "surplus": 0,
    }
    assert (shards.eos_id, shards.vocab_size, shards.dtype) == (2, 2048, "uint16")


def test_llama2_and_qwen2_end_to_end(tmp_path, corpus, stories, tokenizer_of):
    for place, vocab, dtype in (("llama2", 32000, numpy.uint16), ("qwen2", 151936, numpy.int32)):
        tokenizer = load_tokenizer(tokenizer_of(place))
        shards = prepare(tmp_path / place, tokenizer_of(place), corpus, vocab=vocab)
        kept = [text for text in stories if not held_out(text.encode(), 0.1)]
        expected = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(kept)]
        assert read(tmp_path / place, shards.sources[0].train) == expected
        assert shards.dtype == dtype.__name__


def test_all_formats_give_the_same_tokens(tmp_path, stories, tiny_tokenizer, write_jsonl, write_text, write_fineweb):
    texts = [" ".join(story.split()) for story in stories]
    files = [write_jsonl(tmp_path / f"a.jsonl{end}", texts) for end in ("", ".gz", ".zst")]
    files += [write_text(tmp_path / f"a.txt{end}", texts) for end in ("", ".gz", ".zst")]
    files.append(write_fineweb(tmp_path / "a.parquet", texts))
    digests = set()
    for number, file in enumerate(files):
        source = prepare(tmp_path / str(number), tiny_tokenizer, file).sources[0]
        assert source.counts.kept == len(texts)
        digests.add((source.train.digest, source.validation.digest))
    assert len(digests) == 1


def test_the_rows_are_made_of_the_documents(tmp_path, corpus, stories, tiny_tokenizer):
    """Over several shards: whatever stands between two EOS in a row is a document, whole."""
    shards = prepare(tmp_path / "out", tiny_tokenizer, corpus, piece_bytes=30_000, row_length=2048)
    split = shards.sources[0].train
    assert len(split.shards) > 5
    documents = {tuple(ids) for ids in read(tmp_path / "out", split)}
    count = (split.tokens - 1) // 2048
    rows = build_rows(shards, tmp_path / "out", train_rows=count, validation_rows=1, cache_dir=tmp_path / "cache")
    segments = set()
    for number in range(count):
        ids = rows.train[number]["tokens"].numpy()
        ends = numpy.flatnonzero(ids == shards.eos_id) + 1
        segments |= {tuple(ids[start:end].tolist()) for start, end in pairwise(ends)}
    assert len(segments) > count and segments <= documents


def test_same_inputs_same_bytes(tmp_path, corpus, tiny_tokenizer):
    for name in ("one", "two"):
        prepare(tmp_path / name, tiny_tokenizer, corpus)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "lineage.json",
        "shards",
        "shards.json",
    ]
    names = ["shards.json", *(f"shards/{path.name}" for path in (tmp_path / "one" / "shards").iterdir())]
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_saved_set_is_the_returned_set(tmp_path, corpus, tiny_tokenizer):
    shards = prepare(tmp_path / "out", tiny_tokenizer, corpus)
    assert ShardSet.load(tmp_path / "out") == shards
    assert str(tmp_path / "out") not in (tmp_path / "out" / "shards.json").read_text()


def test_no_document_is_in_both_parts_even_over_sources(tmp_path, stories, tiny_tokenizer, write_jsonl):
    one = write_jsonl(tmp_path / "one.jsonl", stories[:300])
    two = write_jsonl(tmp_path / "two.jsonl", stories[100:][::-1])
    shards = prepare(tmp_path / "out", tiny_tokenizer, one, two)
    splits = {"train": set(), "validation": set()}
    for source in shards.sources:
        for name, documents in splits.items():
            documents |= set(map(tuple, read(tmp_path / "out", getattr(source, name))))
    assert splits["train"] and splits["validation"] and not splits["train"] & splits["validation"]


def test_held_out_share_is_the_fraction_and_grows_with_it():
    texts = [f"document {number}" for number in range(20_000)]
    few = {text for text in texts if held_out(text.encode(), 0.1)}
    more = {text for text in texts if held_out(text.encode(), 0.2)}
    assert len(few) == pytest.approx(2000, abs=130)  # three standard deviations of the binomial
    assert few < more
    assert not any(held_out(text.encode(), 0.0) for text in texts)


def test_empty_documents_are_skipped_and_counted(tmp_path, stories, tiny_tokenizer, write_jsonl):
    file = write_jsonl(tmp_path / "a.jsonl", ["", *stories, " \n\t", ""])
    source = prepare(tmp_path / "out", tiny_tokenizer, file).sources[0]
    assert (source.counts.kept, source.counts.empty) == (len(stories), 3)


def test_token_budget_stops_at_the_document_that_reaches_it(tmp_path, corpus, tiny_tokenizer):
    whole = prepare(tmp_path / "whole", tiny_tokenizer, corpus, validation_fraction=0.0)
    some = prepare(tmp_path / "some", tiny_tokenizer, corpus, validation_fraction=0.0, tokens=10_000)
    documents = read(tmp_path / "some", some.sources[0].train)
    assert documents == read(tmp_path / "whole", whole.sources[0].train)[: len(documents)]
    tokens = some.sources[0].train.tokens
    assert tokens - len(documents[-1]) < 10_000 <= tokens


def test_token_budget_is_split_by_weight():
    sources = [{"path": "a", "weight": 3}, {"path": "b", "weight": 1}]
    config = DataConfig.model_validate({"sources": sources, "row_length": 8, "tokens": 1000})
    assert token_budgets(config) == [750, 250]


def _bad_cases(tmp_path, stories, write_jsonl) -> dict[str, dict]:
    good = write_jsonl(tmp_path / "good.jsonl", stories)
    return {
        "vocabulary": {"path": good, "vocab": 2047, "says": "ids up to 2047, but the model's vocabulary has 2047"},
        "tokenizer": {
            "path": good,
            "tokenizer": tmp_path / "nowhere",
            "says": "^tokenizer .*: no such file or folder",
        },
        "missing": {
            "path": tmp_path / "nowhere.jsonl",
            "says": r"^source .*: no such file, and no file",
        },
        "column": {
            "path": write_jsonl(tmp_path / "c.jsonl", ["a"], key="txt"),
            "says": r"no column 'text'; it has txt, id; nearest: txt",
        },
        "no documents": {"path": write_jsonl(tmp_path / "e.jsonl", []), "says": r"corpus is empty \(0 empty documents"},
        "no tokens": {
            "path": write_jsonl(tmp_path / "w.jsonl", ["", " "]),
            "says": r"corpus is empty \(2 empty documents",
        },
        "short": {"path": good, "row_length": 10**7, "says": r"a row of 10000000 needs 10000001.*lower row_length"},
        "validation": {
            "path": good,
            "validation_fraction": 1e-9,
            "says": "0 held-out tokens.*raise validation_fraction",
        },
        "tokens": {
            "path": good,
            "tokens": 10,
            "row_length": 2000,
            "says": r": \d+ training tokens, a row of 2000 needs 2001; .* or raise tokens",
        },
    }


@pytest.mark.parametrize(
    "case",
    [
        "vocabulary",
        "tokenizer",
        "missing",
        "column",
        "no documents",
        "no tokens",
        "short",
        "validation",
        "tokens",
    ],
)
def test_bad_input_is_one_line_and_leaves_no_shards_json(tmp_path, stories, tiny_tokenizer, write_jsonl, case: str):
    options = _bad_cases(tmp_path, stories, write_jsonl)[case]
    path, says = options.pop("path"), options.pop("says")
    tokenizer = options.pop("tokenizer", tiny_tokenizer)
    out = tmp_path / "run" / "data"
    with pytest.raises(DataError, match=says) as caught:
        prepare(out, tokenizer, path, **options)
    assert "\n" not in str(caught.value)
    if case in ("vocabulary", "tokenizer", "missing", "column"):
        assert not (tmp_path / "run").exists()
    assert not (out / "shards.json").exists()


def test_a_setting_mended_after_the_work_does_not_cost_the_work_again(tmp_path, corpus, tiny_tokenizer):
    with pytest.raises(DataError, match="lower row_length"):
        prepare(tmp_path / "out", tiny_tokenizer, corpus, row_length=10**7)
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out" / "shards").iterdir()}
    shards = prepare(tmp_path / "out", tiny_tokenizer, corpus, row_length=64)
    assert {path.name: path.stat().st_ino for path in (tmp_path / "out" / "shards").iterdir()} == before
    assert shards.row_length == 64


def test_other_settings_are_refused_with_their_name(tmp_path, corpus, tiny_tokenizer):
    with pytest.raises(DataError, match="lower row_length"):
        prepare(tmp_path / "out", tiny_tokenizer, corpus, row_length=10**7)
    with pytest.raises(DataError, match=r"plan\.json: planned with seed 1234, now it is 5"):
        prepare(tmp_path / "out", tiny_tokenizer, corpus, seed=5)
    prepare(tmp_path / "out", tiny_tokenizer, corpus)
    with pytest.raises(DataError, match="made with other settings"):
        prepare(tmp_path / "out", tiny_tokenizer, corpus, seed=5)


def test_check_refuses_without_tokenizing_or_writing(tmp_path, corpus, tiny_tokenizer, write_jsonl):
    def config(path: Path) -> DataConfig:
        return DataConfig.model_validate({"sources": [{"path": str(path)}], "row_length": 64})

    before = sorted(tmp_path.iterdir())
    check(config(corpus), tokenizer=tiny_tokenizer, model_vocab_size=2048)
    with pytest.raises(DataError, match="model's vocabulary has 2000"):
        check(config(corpus), tokenizer=tiny_tokenizer, model_vocab_size=2000)
    with pytest.raises(DataError, match="nowhere: no such file, and no file matches"):
        check(config(tmp_path / "nowhere"), tokenizer=tiny_tokenizer, model_vocab_size=2048)
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_is_too_small_is_refused_before_the_work(small_disk, corpus, tiny_tokenizer):
    with pytest.raises(DataError, match=r"about [\d,]+ bytes of shards are still to be written, [\d,]+ bytes are free"):
        prepare(small_disk / "data", tiny_tokenizer, corpus)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("small_disk", ["250k"], indirect=True)
def test_a_disk_that_fills_anyway_keeps_only_complete_shards(tmp_path, small_disk, stories, tiny_tokenizer):
    """The first pieces hold little text beside another column, so that the plan's sample promises little."""
    lines = [json.dumps({"text": text, "page": "x" * 10_000}) for text in stories[:20]]
    lines += [json.dumps({"text": text}) for text in stories] * 2
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(DiskError, match="the disk is full"):
        prepare(small_disk / "data", tiny_tokenizer, file, piece_bytes=50_000)
    shards, pieces = small_disk / "data" / "shards", small_disk / "data" / "pieces"
    complete = [path.stem for path in pieces.glob("0*.json")]
    assert complete
    for path in shards.iterdir():
        assert path.name.startswith(tuple(complete)) and path.suffix in (".bin", ".idx")
    for name in complete:
        assert document_lengths(shards / f"{name}-train").sum() * 2 == (shards / f"{name}-train.bin").stat().st_size


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "shards.json").unlink(), "has no shards.json"),
        (lambda folder: (folder / "shards.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "shards.json").write_text('{"schema_version": 9}'), "schema_version 9, need 2"),
        (lambda folder: _edit(folder, "eos_id", -1), "eos_id: .* greater than or equal to 0"),
        (lambda folder: next(folder.glob("shards/*-train.idx")).unlink(), "train.idx: missing"),
        (lambda folder: next(folder.glob("shards/*-train.bin")).write_bytes(b"cut"), "train.bin: 3 bytes, not"),
    ],
)
def test_a_damaged_set_is_not_loaded(tmp_path, corpus, tiny_tokenizer, change, says: str):
    prepare(tmp_path / "out", tiny_tokenizer, corpus)
    change(tmp_path / "out")
    with pytest.raises(DataError, match=says):
        ShardSet.load(tmp_path / "out")


def _edit(folder: Path, key: str, value: object) -> None:
    content = json.loads((folder / "shards.json").read_text())
    (folder / "shards.json").write_text(json.dumps(content | {key: value}))


def test_a_source_can_be_all_training_or_all_held_out(tmp_path, stories, write_jsonl, tiny_tokenizer):
    sources = [
        {"path": str(write_jsonl(tmp_path / "a.jsonl", stories[:60])), "split": "train"},
        {"path": str(write_jsonl(tmp_path / "b.jsonl", stories[60:])), "split": "validation"},
    ]
    shards = prepare(tmp_path / "out", tiny_tokenizer, sources=sources, tokens=5000)
    train, validation = shards.sources
    assert train.validation.documents == 0 and train.train.tokens >= 5000
    assert validation.train.documents == 0 and validation.validation.documents == len(stories) - 60
    rows = build_rows(shards, tmp_path / "out", train_rows=12, validation_rows=None, cache_dir=tmp_path / "cache")
    assert len(rows.train) == 12
    assert len(rows.validation) == (validation.validation.tokens - 1) // 64
    with pytest.raises(DataError, match="none is left to train on"):
        prepare(tmp_path / "none", tiny_tokenizer, sources=sources[1:])
