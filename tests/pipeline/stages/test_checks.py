"""What is refused before any work because it would otherwise be noticed only after the training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.errors import EvaluationError
from model_surgery.errors import SurgeryError
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import load_recipe
from pipeline.stages.training import check_gpus
from pipeline.tools.plan import make_plan


def test_missing_task_file_is_refused_before_the_training(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe(), ("evaluation.harness=[{name: arc, path: nowhere.jsonl}]",))
    with pytest.raises(EvaluationError, match=r"nowhere\.jsonl does not exist"):
        make_plan(recipe)


def test_missing_recall_words_are_refused_before_the_training(write_recipe: Callable[..., Path]) -> None:
    words = "{fact: '{key} {value} ', question: '{key}', keys: nowhere.json, values: nowhere.json}"
    with pytest.raises(EvaluationError, match=r"recall\.keys: nowhere\.json does not exist"):
        make_plan(load_recipe(write_recipe(), (f"evaluation.recall={words}",)))


def test_needles_that_do_not_fit_are_refused_before_the_training(write_recipe: Callable[..., Path]) -> None:
    niah = "{tasks: [niah_single_1], new_tokens: 60}"
    with pytest.raises(EvaluationError, match=r"a sample of niah_single_1 takes \d+ tokens without any haystack"):
        make_plan(load_recipe(write_recipe(), (f"evaluation.niah={niah}",)))


def test_published_numbers_are_read_before_the_training(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    recipe = load_recipe(write_recipe(), (f"report.published={path}", "report.published_model=Tiny"))
    with pytest.raises(RecipeError, match=r"published\.csv: cannot read it"):
        make_plan(recipe)
    path.write_text(
        "model,source,variant,task,context_factor,value\ntiny,a paper,drope,loss,1,oops\n", encoding="utf-8"
    )
    with pytest.raises(RecipeError, match=r"published\.csv:2: value 'oops' is not a number"):
        make_plan(recipe)
    path.write_text(path.read_text(encoding="utf-8").replace("oops", "2.5"), encoding="utf-8")
    assert make_plan(recipe).steps == 12


def test_a_tokenizer_file_that_the_export_cannot_carry_is_refused(
    write_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "words.json"
    shutil.copyfile(tiny_model / "tokenizer.json", file)
    with pytest.raises(RecipeError, match=r"words\.json: the exported model could not carry"):
        make_plan(load_recipe(write_recipe(), (f"data.tokenizer={file}",)))
    assert make_plan(load_recipe(write_recipe(), (f"data.tokenizer={tiny_model / 'tokenizer.json'}",))).steps == 12


def test_more_processes_than_gpus_are_refused(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe(), ("recalibration.data_parallel=2",))
    check_gpus(recipe, 0)  # on the CPU any number runs
    check_gpus(recipe, 4)
    for gpus in (1, 2, 3):
        with pytest.raises(RecipeError, match=f"= 4 processes: there are {gpus} GPUs here"):
            check_gpus(recipe, gpus)


def test_run_asks_the_hub_for_a_model_that_is_not_built_in(
    drope: Any, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    result = drope("run", write_recipe(), "model.path=nobody/nothing")
    assert result.returncode == 2
    assert "nor to be had from the Hub" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("evaluation.variants=[drope, pi]",), "evaluation.variants has pi: .* has no RoPE"),
        (("evaluation.variants=[drope]", "recalibration.control=true"), "recalibration.control = true: .* has no RoPE"),
        (("recalibration.position_embedding=rope",), "recalibration.position_embedding = rope: .* has no RoPE"),
        (("evaluation.variants=[drope]",), None),
    ],
)
def test_a_source_without_rope_has_none_to_keep_or_scale(
    overrides: tuple[str, ...], message: str | None, tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_model, tmp_path / "drope"))
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(raw | {"model_type": "llama_drope", "attention_type": "nope"}))
    recipe = load_recipe(write_recipe(), (f"model.path={source}", *overrides))
    if message is None:
        assert make_plan(recipe).unchecked == []
    else:
        with pytest.raises(RecipeError, match=message):
            make_plan(recipe)


def test_a_mixture_of_norms_or_a_format_that_no_class_has_is_refused_now(write_recipe: Callable[..., Path]) -> None:
    overrides = ("surgery.qk_norm=full", "export.format=identity_rope")
    with pytest.raises(SurgeryError, match="no stock class has a norm over all heads together"):
        make_plan(load_recipe(write_recipe(), overrides))
