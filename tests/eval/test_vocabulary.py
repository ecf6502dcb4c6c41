"""Tokenizers that are the model's own, and those that are not."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from eval.config import EvaluationConfig
from eval.errors import EvaluationError
from eval.inputs import read_inputs
from eval.models import Models, load_tokenizer
from eval.run import check
from eval.vocabulary import first_difference

CONFIG = EvaluationConfig(context_factors=(1,), loss={"tokens": 1000}, variants=("rope",))
AS_IT_IS = {"tokenizer_class": "PreTrainedTokenizerFast"}
"""The class that takes tokenizer.json whole; LlamaTokenizer builds another one of its vocabulary."""


def with_tokenizer(models: Models, folder: Path, change: dict) -> Models:
    """The same with the source's tokenizer as an export has it; `change` is of the fields of tokenizer.json."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(models.source / name, folder / name)
    for name, changes in (("tokenizer.json", change), ("tokenizer_config.json", AS_IT_IS)):
        stored = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(stored | changes))
    return dataclasses.replace(models, tokenizer=folder)


def test_first_difference_by_hand() -> None:
    own = {"a": 0, "b": 1, "c": 2}
    assert first_difference(own, own) == ""
    assert first_difference(own, {**own, "<pad>": 3}) == first_difference({**own, "<pad>": 3}, own) == ""
    assert first_difference(own, {"a": 0, "b": 2, "c": 1}) == "token 'b' is 1 there and 2 here"
    assert first_difference(own, {"a": 0, "b": 1, "d": 2}) == "id 2 is 'c' there and 'd' here"
    assert first_difference(own, {"x": 0, "b": 1, "c": 2}) == "id 0 is 'a' there and 'x' here"


def test_a_tokenizer_of_as_many_other_tokens(models: Models, tmp_path: Path) -> None:
    """Two tokens have changed places, so that the sizes say nothing."""
    model = json.loads((models.source / "tokenizer.json").read_text())["model"]
    left, right = sorted(model["vocab"], key=model["vocab"].get)[1000:1002]
    model["vocab"][left], model["vocab"][right] = model["vocab"][right], model["vocab"][left]
    changed = with_tokenizer(models, tmp_path / "other", {"model": model})
    with pytest.raises(EvaluationError) as caught:
        check(CONFIG, changed)
    assert str(caught.value) == (
        f"{tmp_path / 'other'}: another tokenizer than that of {models.source}: token {left!r} is 1000 there and 1001 "
        "here; give the tokenizer that the model was trained with"
    )


def test_the_same_vocabulary_of_another_class_is_the_same(models: Models, tmp_path: Path) -> None:
    changed = with_tokenizer(models, tmp_path / "same", {})
    assert type(load_tokenizer(changed.tokenizer)) is not type(load_tokenizer(models.source))
    check(CONFIG, changed)


def test_a_source_without_a_tokenizer_or_with_a_broken_one(
    models: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(models.source / name)
    check(CONFIG, dataclasses.replace(models, source=bare))
    assert caplog.text == ""
    (bare / "tokenizer.json").write_text("{")
    check(CONFIG, dataclasses.replace(models, source=bare))
    assert "the source's tokenizer is not compared" in caplog.text


def test_a_tokenizer_that_truncates_does_not_cut_here(models: Models, tmp_path: Path) -> None:
    """`tokenizers` itself cuts what such a file encodes; transformers does not where it is not asked to."""
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    changed = with_tokenizer(models, tmp_path / "cut", {"truncation": truncation})
    text = "Once upon a time there was a little girl. " * 40
    assert len(Tokenizer.from_file(str(changed.tokenizer / "tokenizer.json")).encode(text).ids) == 8
    cut, whole = read_inputs(CONFIG, changed), read_inputs(CONFIG, with_tokenizer(models, tmp_path / "whole", {}))
    assert load_tokenizer(changed.tokenizer).backend_tokenizer.truncation is not None  # until it encodes
    assert cut.encode(text) == whole.encode(text) and len(whole.encode(text)) > 200
    assert cut.encode_prompt(text) == whole.encode_prompt(text)
