"""A run that starts from random weights: its checks and its stages up to the layout that training takes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_surgery.layout import Layout
from pipeline.errors import RecipeError
from pipeline.recipe.random_model import source_folder
from pipeline.recipe.recipe import load_recipe
from pipeline.runs.folder import is_complete
from pipeline.stages.order import STAGES
from pipeline.stages.run import run
from pipeline.tools.inspect import inspect_path
from pipeline.tools.plan import make_plan

TP_1 = "surgery.tensor_parallel=1"
SURGERY = next(stage for stage in STAGES if stage.name == "surgery")


def test_the_plan_of_random_weights_writes_nothing(write_scratch_recipe: Callable[..., Path], tmp_path: Path) -> None:
    plan = make_plan(load_recipe(write_scratch_recipe()))
    assert (plan.steps, plan.shape.context, plan.unchecked) == (12, 32, [])
    assert plan.disk["random start"] == plan.shape.parameters * 4
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("evaluation.variants=[drope, pi]",), r"evaluation\.variants has pi, which scores the source"),
        (
            ("recalibration.drop_at_step=12",),
            r"recalibration\.drop_at_step = 12: the budget of [\d,]+ tokens has 12 steps",
        ),
    ],
)
def test_what_random_weights_cannot_give_is_refused_before_any_work(
    overrides: tuple[str, ...], message: str, write_scratch_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        run(load_recipe(write_scratch_recipe(), overrides))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs" / "tiny" / "surgery").exists()


def test_a_source_without_rope_has_none_to_drop(
    write_scratch_recipe: Callable[..., Path], described_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(described_model, tmp_path / "drope"))
    raw = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(raw | {"model_type": "qwen2_drope", "attention_type": "nope"}))
    overrides = (f"model.path={model}", "recalibration.drop_qk_norm=none")
    with pytest.raises(RecipeError, match=r"recalibration\.drop_at_step = 8: .* has no RoPE"):
        make_plan(load_recipe(write_scratch_recipe(), overrides))


@pytest.mark.slow
def test_surgery_draws_its_source_and_is_complete_for_this_seed_alone(
    write_scratch_recipe: Callable[..., Path],
) -> None:
    recipe = load_recipe(write_scratch_recipe(), (TP_1,))
    left = source_folder(recipe) / "left-by-an-attempt-that-was-killed"
    left.mkdir(parents=True)
    (recipe.folder / "recipe.yaml").touch()
    run(recipe, ("surgery",))
    assert not left.exists()
    layout = Layout.load(recipe.folder / "surgery")
    assert (layout.source, layout.shape.context) == (str(source_folder(recipe)), 32)
    assert inspect_path(source_folder(recipe))["parameters"] == f"{layout.shape.parameters:,}"
    assert is_complete(SURGERY, recipe)
    with pytest.raises(RecipeError, match=r"surgery stage of another recipe: inputs\.model"):
        is_complete(SURGERY, load_recipe(write_scratch_recipe(), ("model.random_seed=1", TP_1)))


@pytest.mark.slow
def test_a_full_disk_while_the_weights_are_drawn_is_one_line(
    drope: Any, write_scratch_recipe: Callable[..., Path], small_disk: Path
) -> None:
    (small_disk / "other").write_bytes(bytes(40_000))
    result = drope("run", write_scratch_recipe(), "--stage", "surgery", f"runs_dir={small_disk / 'runs'}")
    assert result.returncode == 2, result.stderr
    assert "model.safetensors: the disk is full" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (small_disk / "runs" / "tiny").exists()
