"""Bad input of every kind through the whole of a preparation: counted, listed, limited, and never lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.artifact import ShardSet
from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.prepare import run

GOOD = 300


@pytest.fixture
def good(stories: list[str]) -> list[str]:
    return stories[:GOOD]


def prepare(folder: Path, tokenizer: Path, **options: object) -> ShardSet:
    settings = {"sources": [{"path": str(folder / "in")}], "row_length": 64, "validation_fraction": 0.1}
    config = DataConfig.model_validate(settings | {"piece_bytes": 30_000, "workers": 1} | options)
    return run(config, tokenizer=tokenizer, model_vocab_size=2048, out_dir=folder / "out", workers=1)


def rejected(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]


def damage_records(folder: Path, good: list[str], write_jsonl, write_fineweb) -> tuple[int, list[str]]:
    lines = [json.dumps({"text": text}).encode() for text in good]
    bad = [b'{"text": null}', b'{"id": 1}', b'{"text": 7}', b"no json", b'["text"]', b'{"text": "\xff"}']
    bad += [b'{"text": "\\ud800"}', json.dumps({"text": "long " * 500_000}).encode()]
    (folder / "a.jsonl").write_bytes(b"\n".join([*bad[:4], *lines, *bad[4:]]))
    reasons = ["text is null", "no column 'text'", "text is a number", "not JSON", "an array", "invalid UTF-8"]
    return len(bad), [*reasons, "lone surrogate", "over max_document_bytes"]


def damage_gzip(folder: Path, good: list[str], write_jsonl, write_fineweb) -> tuple[int, list[str]]:
    write_jsonl(folder / "a.jsonl", good)
    cut = write_jsonl(folder / "b.jsonl.gz", good[:100])
    cut.write_bytes(cut.read_bytes()[:-3000])
    return 1, ["cut short: the gzip data has no end"]


def damage_page(folder: Path, good: list[str], write_jsonl, write_fineweb) -> tuple[int, list[str]]:
    file = write_fineweb(folder / "a.parquet", good, row_group_size=50)
    content = bytearray(file.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 200):
        content[place] ^= 0xFF
    file.write_bytes(bytes(content))
    return 50, ["cannot be read ("]


def damage_link(folder: Path, good: list[str], write_jsonl, write_fineweb) -> tuple[int, list[str]]:
    write_jsonl(folder / "a.jsonl", good)
    os.symlink(folder / "nowhere.jsonl", folder / "b.jsonl")
    return 1, ["No such file"]


@pytest.mark.parametrize("damage", [damage_records, damage_gzip, damage_page, damage_link])
def test_what_cannot_be_read_is_counted_listed_and_limited(
    tmp_path, good, tiny_tokenizer, write_jsonl, write_fineweb, damage
):
    (tmp_path / "in").mkdir()
    most, reasons = damage(tmp_path / "in", good, write_jsonl, write_fineweb)
    limits = {"max_document_bytes": 1_000_000}
    with pytest.raises(DataError, match=r"documents rejected .* more than data\.max_rejected_fraction") as caught:
        prepare(tmp_path, tiny_tokenizer, max_rejected_fraction=0.0, **limits)
    assert "\n" not in str(caught.value) and rejected(tmp_path)
    shards = prepare(tmp_path, tiny_tokenizer, max_rejected_fraction=0.5, **limits)
    counts = shards.sources[0].counts
    listed = rejected(tmp_path)
    assert 1 <= counts.rejected <= most and counts.rejected == sum(entry["documents"] for entry in listed)
    assert counts.documents == counts.kept + counts.empty + counts.rejected
    assert counts.kept >= GOOD - 50
    missing = [reason for reason in reasons if not any(reason in entry["reason"] for entry in listed)]
    assert missing == []


def test_a_long_document_does_not_fail_a_corpus_of_which_it_is_a_small_share(
    tmp_path, good, tiny_tokenizer, write_jsonl
):
    """The limit is a share of the documents; this one has half of the bytes."""
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", [*good, "long " * 60_000])
    shards = prepare(tmp_path, tiny_tokenizer, max_rejected_fraction=0.01, max_document_bytes=100_000)
    assert shards.sources[0].counts.rejected == 1


def test_the_limit_does_not_depend_on_which_source_comes_first(tmp_path, good, tiny_tokenizer, write_jsonl):
    """Bad records in a source of few, long documents; the other has many short ones."""
    (tmp_path / "in").mkdir()
    few_texts = [" ".join(good[start : start + 20]) for start in range(0, GOOD, 20)]
    few = write_jsonl(tmp_path / "in" / "few.jsonl", [*few_texts, None, None])
    many = write_jsonl(tmp_path / "in" / "many.jsonl", [f"Hello number {number}." for number in range(4000)])
    for number, files in enumerate([(few, many), (many, few)]):
        config = DataConfig.model_validate(
            {
                "sources": [{"path": str(file)} for file in files],
                "row_length": 8,
                "piece_bytes": 30_000,
                "validation_fraction": 0.3,
            }
        )
        out = tmp_path / str(number)
        shards = run(config, tokenizer=tiny_tokenizer, model_vocab_size=2048, out_dir=out, workers=1)
        assert sum(source.counts.rejected for source in shards.sources) == 2


def test_many_rejections_need_little_memory(tmp_path, good, tiny_tokenizer):
    """300,000 records without a text: their list is written as it grows."""
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"text": text}) for text in good] + ["{}"] * 300_000
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(lines))
    script = f"""
import pathlib
from data_prep.config import DataConfig
from data_prep.prepare import run
config = DataConfig(sources=[{{"path": {str(tmp_path / "in")!r}}}], row_length=64, max_rejected_fraction=0.9999,
                    validation_fraction=0.1, backend="reference")
run(config, tokenizer=pathlib.Path({str(tiny_tokenizer)!r}), model_vocab_size=2048,
    out_dir=pathlib.Path({str(tmp_path / "out")!r}), workers=1)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 350_000  # KiB; held in memory they would take some 400 MiB more
    assert sum(1 for _ in (tmp_path / "out" / "rejected.jsonl").open()) == 300_000
