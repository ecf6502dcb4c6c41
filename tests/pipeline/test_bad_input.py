"""Every kind of bad input: one clear line, exit code 2, no run folder left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def refused(drope: Any, write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Runs the recipe with overrides, checks that it is refused cleanly, and returns the one line."""

    def run(*overrides: str, **sections: Any) -> str:
        result = drope("run", write_recipe(**sections), *overrides)
        assert result.returncode == 2, result.stderr
        lines = result.stderr.strip().splitlines()
        assert lines[-1].startswith("drope: ")
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "runs" / "tiny").exists()
        return lines[-1]

    return run


@pytest.fixture
def broken_model(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny checkpoint whose tensors went through `change`."""

    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(tiny_model, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def test_unknown_key(refused: Callable[..., str]) -> None:
    assert "did you mean lr?" in refused("recalibration.lrr=1")


def test_wrong_type(refused: Callable[..., str]) -> None:
    assert "recalibration.batch = 'many'" in refused("recalibration.batch=many")


def test_variant_that_does_not_exist(refused: Callable[..., str]) -> None:
    line = refused("evaluation.variants=[rope, yarm]")
    assert "evaluation.variants.1 = 'yarm'" in line and line.endswith("or 'control'; did you mean yarn?")


def test_missing_recipe(drope: Any, tmp_path: Path) -> None:
    result = drope("run", tmp_path / "none.yaml")
    assert result.returncode == 2 and "No such file" in result.stderr


def test_missing_documents(refused: Callable[..., str]) -> None:
    line = refused("data.sources.0.path=nowhere.jsonl")
    assert line == "drope: source nowhere.jsonl: no such file, and no file matches it as a glob"


def test_text_column_that_is_not_there(refused: Callable[..., str]) -> None:
    line = refused("data.sources.0.text_column=txt")
    assert line.endswith(".jsonl: no column 'txt'; it has text; nearest: text")


def test_empty_corpus(refused: Callable[..., str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n{"text": "  "}\n')
    assert "the corpus is empty (2 empty documents, none with text)" in refused(f"data.sources.0.path={empty}")


def test_tokenizer_beyond_the_vocabulary(
    refused: Callable[..., str], write_model: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    small = write_model(tmp_path / "small-vocabulary", vocab_size=80)
    line = refused(f"model.path={small}", f"data.tokenizer={tiny_model}")
    assert "ids up to 95, but the model's vocabulary has 80 entries" in line


def test_missing_extra_and_misshapen_tensors(
    refused: Callable[..., str], broken_model: Callable[..., Path], tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def transpose(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].T.contiguous()

    changes = {
        f"missing tensor {name}; config.json": lambda tensors: tensors.pop(name),
        "unexpected tensor model.layers.1.extra; config.json": lambda tensors: tensors.update(
            {"model.layers.1.extra": tensors[name] * 1}
        ),
        f"tensor {name} has shape [": transpose,
    }
    for problem, change in changes.items():
        assert problem in refused(f"model.path={broken_model(change)}")
        shutil.rmtree(tmp_path / "broken")


def test_too_little_text_for_a_search_is_refused_before_training(
    drope: Any, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """The first stage that knows how much text there is says so."""
    needed = ("evaluation.variants=[rope, longrope2]", "evaluation.longrope2.tokens=1000000")
    result = drope("run", write_recipe(), *needed)
    assert result.returncode == 2
    assert "the search of longrope2 takes 1000001 others; prepare more" in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "runs" / "tiny" / "data" / "manifest.json").exists()
    assert not (tmp_path / "runs" / "tiny" / "surgery").exists()


def test_unsupported_architecture(refused: Callable[..., str], tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox"}))
    line = refused(f"model.path={tmp_path / 'other'}")
    assert "model_type = 'gpt_neox' is not supported; supported: llama (Llama 2," in line


def test_tp_that_does_not_fit(refused: Callable[..., str]) -> None:
    line = refused("surgery.tensor_parallel=5")
    assert "surgery.tensor_parallel = 5" in line and "4 query heads; use 4 or less" in line


def test_stage_that_does_not_exist(drope: Any, write_recipe: Callable[..., Path]) -> None:
    result = drope("run", write_recipe(), "--stage", "exprt")
    assert result.returncode == 2
    expected = "data, surgery, recalibration, export, evaluation, report"
    assert result.stderr.splitlines()[-1] == f"drope: --stage exprt: this recipe has {expected}"


def test_inspect_of_nothing(drope: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, part in ((tmp_path / "none", "no such file"), (tmp_path / "empty", "not recognised")):
        result = drope("inspect", path)
        assert result.returncode == 2 and part in result.stderr
