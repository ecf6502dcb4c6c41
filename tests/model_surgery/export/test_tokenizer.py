"""The exported tokenizer gives the ids that the model was trained with, on real text."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from model_surgery.errors import SurgeryError
from model_surgery.export.tokenizer import copy_tokenizer


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> list[str]:
    lines = (shared_data / "text" / "tinystories-validation.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def export_folder(source: Path, out: Path) -> Path:
    """The tokenizer in a folder whose config.json is that of an export."""
    out.mkdir()
    copy_tokenizer(source, source, out)
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    (out / "config.json").write_text(json.dumps({"model_type": "smollm3", "vocab_size": 49152, **ids}))
    return out


def ids_by_transformers(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


@pytest.mark.parametrize("where", ["models/tinystories-656k", "tokenizers/smollm"])
def test_ids_are_those_of_tokenizer_json(where: str, shared_data: Path, stories: list[str], tmp_path: Path) -> None:
    source = shared_data / where
    direct = Tokenizer.from_file(str(source / "tokenizer.json"))
    expected = [direct.encode(text, add_special_tokens=False).ids for text in stories]
    assert len(expected) == 116
    folder = export_folder(source, tmp_path / "export")
    assert ids_by_transformers(folder, stories) == expected
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer(text).input_ids for text in stories] == [direct.encode(text).ids for text in stories]
    assert [tokenizer.decode(ids) for ids in expected] == [
        direct.decode(ids, skip_special_tokens=False) for ids in expected
    ]


def test_the_copied_class_would_have_given_others(shared_data: Path, stories: list[str]) -> None:
    """Why tokenizer_config.json is changed; if this fails, transformers reads tokenizer.json as it is again."""
    source = shared_data / "models" / "tinystories-656k"
    direct = Tokenizer.from_file(str(source / "tokenizer.json"))
    expected = [direct.encode(text, add_special_tokens=False).ids for text in stories]
    assert ids_by_transformers(source, stories) != expected


def test_all_but_the_class_is_kept(tinystories: Path, tmp_path: Path) -> None:
    names = copy_tokenizer(tinystories, tinystories, tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert set(names) == {path.name for path in tinystories.iterdir()} - {"config.json", "model.safetensors"}
    for name in set(names) - {"tokenizer_config.json"}:
        assert (tmp_path / name).read_bytes() == (tinystories / name).read_bytes()
    source, got = (json.loads((f / "tokenizer_config.json").read_text()) for f in (tinystories, tmp_path))
    assert source.pop("tokenizer_class") == "LlamaTokenizer"
    assert got.pop("tokenizer_class") == "PreTrainedTokenizerFast"
    assert got == source
    tokenizer = AutoTokenizer.from_pretrained(export_folder(tinystories, tmp_path / "export"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)


def test_remote_code_is_not_asked_for(tinystories: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tinystories, tmp_path / "source"))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    remote = {"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "T"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings | remote))
    folder = export_folder(source, tmp_path / "export")
    assert len(AutoTokenizer.from_pretrained(folder)) == 2048


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "LlamaTokenizer", "legacy": False}])
def test_ids_are_those_of_sentencepiece(
    settings: dict[str, object] | None, shared_data: Path, stories: list[str], tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceProcessor

    source = tmp_path / "source"
    source.mkdir()
    model = Path(shutil.copy(shared_data / "tokenizers" / "llama2" / "tokenizer.model", source))
    if settings:
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
    folder = export_folder(source, tmp_path / "export")
    assert (folder / "tokenizer.model").read_bytes() == model.read_bytes()
    if settings:
        assert json.loads((folder / "tokenizer_config.json").read_text()) == settings
    direct = SentencePieceProcessor(model_file=str(model))
    assert ids_by_transformers(folder, stories) == [direct.encode(text) for text in stories]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (direct.bos_id(), direct.eos_id())


def test_settings_that_are_not_json_are_refused(tinystories: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tinystories, tmp_path / "source"))
    (source / "tokenizer_config.json").write_text("{")
    with pytest.raises(SurgeryError, match=r"tokenizer_config\.json: not valid JSON"):
        copy_tokenizer(source, source, tmp_path / "export")


def test_no_tokenizer_is_no_tokenizer(tmp_path: Path) -> None:
    assert copy_tokenizer(tmp_path, tmp_path, tmp_path / "export") == []
