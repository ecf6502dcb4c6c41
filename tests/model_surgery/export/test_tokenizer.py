"""The exported tokenizer gives the ids that the model was trained with, on real text."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from model_surgery.errors import SurgeryError
from model_surgery.export.tokenizer import copy_tokenizer


@pytest.fixture(scope="session")
def texts(real_texts: list[str]) -> list[str]:
    return real_texts[:116]


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


@pytest.mark.parametrize("name", ["small_llama", "smollm2"])
def test_ids_are_those_of_tokenizer_json(
    name: str, request: pytest.FixtureRequest, texts: list[str], tmp_path: Path
) -> None:
    source = request.getfixturevalue(name)
    direct = Tokenizer.from_file(str(source / "tokenizer.json"))
    expected = [direct.encode(text, add_special_tokens=False).ids for text in texts]
    assert len(expected) == 116
    folder = export_folder(source, tmp_path / "export")
    assert ids_by_transformers(folder, texts) == expected
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer(text).input_ids for text in texts] == [direct.encode(text).ids for text in texts]
    assert [tokenizer.decode(ids) for ids in expected] == [
        direct.decode(ids, skip_special_tokens=False) for ids in expected
    ]


def test_the_copied_class_would_have_given_others(small_llama: Path, texts: list[str]) -> None:
    """Why tokenizer_config.json is changed; if this fails, transformers reads tokenizer.json as it is again."""
    texts = [*texts, "a naïve 漢字"]  # it tells apart how an unknown character is taken
    direct = Tokenizer.from_file(str(small_llama / "tokenizer.json"))
    expected = [direct.encode(text, add_special_tokens=False).ids for text in texts]
    assert ids_by_transformers(small_llama, texts) != expected


def test_all_but_the_class_is_kept(small_llama: Path, tmp_path: Path) -> None:
    names = copy_tokenizer(small_llama, small_llama, tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert set(names) == {path.name for path in small_llama.iterdir()} - {"config.json", "model.safetensors"}
    for name in set(names) - {"tokenizer_config.json"}:
        assert (tmp_path / name).read_bytes() == (small_llama / name).read_bytes()
    source, got = (json.loads((f / "tokenizer_config.json").read_text()) for f in (small_llama, tmp_path))
    assert source.pop("tokenizer_class") == "LlamaTokenizer"
    assert got.pop("tokenizer_class") == "PreTrainedTokenizerFast"
    assert got == source
    tokenizer = AutoTokenizer.from_pretrained(export_folder(small_llama, tmp_path / "export"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)


def test_remote_code_is_not_asked_for(small_llama: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(small_llama, tmp_path / "source"))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    remote = {"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "T"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings | remote))
    folder = export_folder(source, tmp_path / "export")
    assert len(AutoTokenizer.from_pretrained(folder)) == 2048


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "LlamaTokenizer", "legacy": False}])
def test_ids_are_those_of_sentencepiece(
    settings: dict[str, object] | None, extra_data: Callable[[str], Path], texts: list[str], tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceProcessor

    source = tmp_path / "source"
    source.mkdir()
    model = Path(shutil.copy(extra_data("tokenizers/llama2/tokenizer.model"), source))
    if settings:
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
    folder = export_folder(source, tmp_path / "export")
    assert (folder / "tokenizer.model").read_bytes() == model.read_bytes()
    if settings:
        assert json.loads((folder / "tokenizer_config.json").read_text()) == settings
    direct = SentencePieceProcessor(model_file=str(model))
    texts = [" ".join(text.split()) for text in texts]
    assert ids_by_transformers(folder, texts) == [direct.encode(text) for text in texts]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (direct.bos_id(), direct.eos_id())


@pytest.mark.xfail(strict=True, reason="transformers 5.23 joins spaces in a row in another order than sentencepiece")
def test_spaces_in_a_row_are_those_of_sentencepiece(extra_data: Callable[[str], Path], tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    source = extra_data("tokenizers/llama2/tokenizer.model").parent
    direct = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    folder = export_folder(source, tmp_path / "export")
    assert ids_by_transformers(folder, ["one  two"]) == [direct.encode("one  two")]


def test_settings_that_are_not_json_are_refused(small_llama: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(small_llama, tmp_path / "source"))
    (source / "tokenizer_config.json").write_text("{")
    with pytest.raises(SurgeryError, match=r"tokenizer_config\.json: not valid JSON"):
        copy_tokenizer(source, source, tmp_path / "export")


def test_no_tokenizer_is_no_tokenizer(tmp_path: Path) -> None:
    assert copy_tokenizer(tmp_path, tmp_path, tmp_path / "export") == []
