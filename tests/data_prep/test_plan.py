import json
from pathlib import Path

import pytest

from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.estimate import short_sample
from data_prep.plan import FILE_NAME, load, load_or_make, ordered, settings_of
from data_prep.reading.files import SourceFile
from data_prep.tokenizers.reference import load_tokenizer


def file(url: str) -> SourceFile:
    return SourceFile(url=url, format="jsonl", size=1, mark="1")


def names(files: tuple[SourceFile, ...]) -> list[str]:
    return [Path(one.url).name for one in files]


def test_the_order_of_files_is_drawn_by_the_seed_and_not_by_where_they_lie():
    here = tuple(file(f"/here/{number}.jsonl") for number in range(50))
    there = tuple(file(f"s3://bucket/far/away/{number}.jsonl") for number in range(50))
    assert names(ordered(here, 1)) == names(ordered(there, 1)) == names(ordered(here[::-1], 1))
    assert names(ordered(here, 1)) != names(ordered(here, 2)) != names(here)
    assert sorted(names(ordered(here, 1))) == sorted(names(here))


@pytest.fixture
def config(tmp_path: Path, stories: list[str], write_jsonl) -> DataConfig:
    (tmp_path / "in").mkdir()
    for number in range(20):
        write_jsonl(tmp_path / "in" / f"{number:02d}.jsonl", stories[number * 20 : number * 20 + 20])
    return DataConfig.model_validate(
        {"sources": [{"path": str(tmp_path / "in")}], "row_length": 64, "piece_bytes": 5_000}
    )


@pytest.fixture
def tokenizer(tiny_tokenizer: Path):
    return load_tokenizer(tiny_tokenizer)


def test_every_task_makes_the_same_plan(tmp_path, config, tokenizer):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plan = load_or_make(tmp_path / name, config, tokenizer)
        assert load(tmp_path / name / FILE_NAME) == plan
    assert (tmp_path / "a" / FILE_NAME).read_bytes() == (tmp_path / "b" / FILE_NAME).read_bytes()


def test_a_budget_cuts_only_the_files_that_it_needs(tmp_path, config, tokenizer):
    """The texts have about a token for every three or four bytes."""
    few = load_or_make(tmp_path, config.model_copy(update={"tokens": 12_000}), tokenizer).sources[0]
    assert len(few.files) == 20 and 2 <= few.cut <= 6
    expected = few.tokens_per_byte * few.text_bytes
    assert 12_000 <= expected <= 12_000 + 2 * 20 * 300
    assert 0.15 < few.tokens_per_byte < 0.45


def test_settings_that_change_no_shard_change_no_plan(config, tokenizer):
    same = {"backend": "reference", "check_fraction": 0.5, "max_rejected_fraction": 0.5, "workers": 3, "row_length": 9}
    for name, value in same.items():
        assert settings_of(config.model_copy(update={name: value}), tokenizer) == settings_of(config, tokenizer)
    other = {"seed": 2, "tokens": 5, "piece_bytes": 7, "validation_fraction": 0.5, "max_document_bytes": 5}
    for name, value in other.items():
        assert settings_of(config.model_copy(update={name: value}), tokenizer) != settings_of(config, tokenizer)


def test_a_damaged_plan_is_one_line(tmp_path, config, tokenizer):
    load_or_make(tmp_path, config, tokenizer)
    content = json.loads((tmp_path / FILE_NAME).read_text())
    for damaged in ("{", json.dumps(content | {"sources": 1})):
        (tmp_path / FILE_NAME).write_text(damaged)
        with pytest.raises(DataError, match=r"plan\.json: .*; remove .* to begin anew"):
            load_or_make(tmp_path, config, tokenizer)


def test_the_sample_has_text_and_ends_early():
    assert short_sample(["", " \n", "a"]) == ["a"]
    assert len(short_sample(["word"] * 1000)) == 200
    assert len(short_sample(["x" * 600_000] * 10)) == 2
    assert short_sample([]) == []
