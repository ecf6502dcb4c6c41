"""`drope tune-scale` as a user calls it, on a run up to its export."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from eval.errors import EvaluationError
from eval.tuning.head_scales import TrainedHeads
from eval.tuning.softmax_scale import ScaleResults
from eval.variants.loading import scale_queries
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import load_recipe
from pipeline.tools.tune_scale import recipe_lines, scale_of, summary, tune_scale

TOKENS = torch.randint(96, (2, 60), generator=torch.Generator().manual_seed(5))
STAGES = ("data", "surgery", "recalibration", "export")


@pytest.fixture(scope="module")
def exported(raw_recipe: dict[str, Any], drope: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has its export, and its recipe."""
    root = tmp_path_factory.mktemp("exported")
    recipe = root / "recipe.yaml"
    evaluation = raw_recipe["evaluation"] | {"context_factors": [1, 2, 4]}
    recipe.write_text(yaml.safe_dump(raw_recipe | {"runs_dir": str(root / "runs"), "evaluation": evaluation}))
    result = drope("run", recipe, *(argument for stage in STAGES for argument in ("--stage", stage)))
    assert result.returncode == 0, result.stderr
    return root


def logits(folder: Path, beta: float = 1.0) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    scale_queries(model, beta)
    with torch.inference_mode():
        return model(TOKENS).logits


@pytest.mark.slow
def test_scales_per_head_and_a_scale_left_in_the_config(exported: Path, tmp_path: Path) -> None:
    recipe, run = moved(exported, tmp_path)
    stale = run / "softmax-scale" / "model-2x"
    stale.mkdir(parents=True)
    (stale / "stale").touch()
    made = tune_scale(load_recipe(recipe), factors=(2.0,), apply="config", per_head=True, steps=3, tokens=256)
    heads = TrainedHeads.model_validate_json((run / "softmax-scale" / "heads.json").read_bytes())
    outcome = ScaleResults.model_validate_json((run / "softmax-scale" / "scale.json").read_bytes())
    assert (heads.factor, heads.length, heads.steps, heads.start) == (2, 64, 3, outcome.lengths[0].beta)
    (check,) = heads.checks
    said = f"loss on held-out text that was not trained on ({check.rows} rows): {check.before:.4f} -> {check.after:.4f}"
    assert said in summary(made)
    model = run / "softmax-scale" / "model-heads-2x"
    plain = AutoModelForCausalLM.from_pretrained(run / "export" / "drope", dtype="auto").eval()
    for layer, scales in zip(plain.model.layers, heads.scales, strict=True):
        wide = torch.tensor(scales).repeat_interleave(layer.self_attn.head_dim)
        layer.self_attn.q_proj.register_forward_hook(lambda module, args, queries, wide=wide: queries * wide)
    with torch.inference_mode():
        torch.testing.assert_close(logits(model), plain(TOKENS).logits, rtol=0, atol=1e-5)
    assert not (stale / "stale").exists()
    assert torch.equal(logits(stale), logits(run / "export" / "drope"))  # a stock class does not read it
    assert json.loads((stale / "config.json").read_text())["drope"]["softmax_scale"]["apply"] == "config"


@pytest.mark.slow
@pytest.mark.real_processes
def test_a_run_s_scale_and_the_models_that_carry_it(exported: Path, drope: Any) -> None:
    made = drope("tune-scale", exported / "recipe.yaml", "--factor", 4, "--factor", 2.5, "--tokens", 512)
    assert made.returncode == 0, made.stderr
    run = exported / "runs" / "tiny"
    folder = run / "softmax-scale"
    outcome = ScaleResults.model_validate_json((folder / "scale.json").read_bytes())
    assert [(one.factor, one.length, one.rows) for one in outcome.lengths] == [(2, 64, 8), (4, 128, 4)]
    assert outcome.judged_by == "text" and outcome.c_error is not None and outcome.c_residual_error is not None
    rows = list(csv.DictReader((folder / "scale.csv").open()))
    assert len(rows) == sum(len(one.points) for one in outcome.lengths)
    words = "".join(ElementTree.parse(folder / "scale.svg").getroot().itertext())
    assert all(part in words for part in ("2x (64 tokens)", "4x (128 tokens)", "ln s", "held-out text"))
    lines = made.stdout.splitlines()
    assert f"c = {outcome.c:.4f}, standard error" in made.stdout
    assert lines[-1] == f"plot: {folder.resolve() / 'scale.svg'}"
    for factor in ("4", "2.5"):
        model = folder / f"model-{factor}x"
        assert f"model: {model.resolve()}" in lines
        beta = 1 + outcome.c * math.log(float(factor))
        torch.testing.assert_close(logits(model), logits(run / "export" / "drope", beta), rtol=0, atol=1e-5)
        assert json.loads((model / "config.json").read_text())["drope"]["softmax_scale"]["beta"] == pytest.approx(beta)
        assert "| export check | loss" in (model / "README.md").read_text()
    assert not list(folder.glob(".*"))
    assert not (folder / "heads.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "options", "said"),
    [
        (
            "evaluation.context_factors=[1]",
            {},
            r"evaluation.context_factors = \[1\]: a softmax scale is for lengths above 1x",
        ),
        ("evaluation.loss.tokens=2700", {}, "scored by the evaluation; a scale is tuned on others, at least 129"),
        ("name=tiny", {"per_head": True, "factors": (1000.0,)}, "a scale is tuned on others, at least 32001"),
    ],
)
def test_what_cannot_be_tuned_is_one_line_and_nothing_is_written(
    exported: Path, tmp_path: Path, override: str, options: dict[str, Any], said: str
) -> None:
    recipe, run = moved(exported, tmp_path)
    with pytest.raises(EvaluationError, match=said) as caught:
        tune_scale(load_recipe(recipe, (override,)), **options)
    assert "\n" not in str(caught.value) and not (run / "softmax-scale").exists()


@pytest.mark.slow
def test_a_run_without_its_export(exported: Path, tmp_path: Path) -> None:
    recipe, run = moved(exported, tmp_path)
    shutil.rmtree(run / "export")
    with pytest.raises(RecipeError, match=r"^tune-scale needs stage export, which is not complete in"):
        tune_scale(load_recipe(recipe))


def moved(exported: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A recipe and its run, a copy of the exported one and nothing more."""
    shutil.copytree(exported / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("softmax-scale"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((exported / "recipe.yaml").read_text().replace(str(exported), str(tmp_path)))
    return recipe, tmp_path / "runs" / "tiny"


def test_a_run_that_has_not_begun(write_recipe: Callable[..., Path], drope: Any) -> None:
    recipe = write_recipe()
    made = drope("tune-scale", recipe)
    assert made.returncode == 2
    assert made.stderr.startswith("drope: tune-scale needs stage data, which is not complete in")
    assert not (recipe.parent / "runs").exists()
    less = drope("tune-scale", recipe, "--factor", 0.5)
    assert less.returncode == 2 and "0.5 is not in the range x>=1" in less.stderr


def test_the_recipe_is_told_a_scale_only_where_one_helps() -> None:
    record = {"model": "", "model_digest": "", "training_length": 32, "judged_by": "text", "seed": 1}
    length = {"factor": 8, "length": 256, "rows": 1, "beta": 1.2, "beta_error": None, "points": ()}
    length |= dict.fromkeys(("loss_plain", "loss_tuned", "fitted_beta", "loss_fitted", "gain"), 1.0)
    one = {"c_error": None, "c_residual_error": None, "lengths": ({**length, "gain_error": None},)}
    helps, hurts = (ScaleResults(**record, **one, c=c) for c in (0.10321, -0.2))
    assert recipe_lines(helps)[1:] == [
        "    evaluation: {softmax_scale_c: 0.1032}",
        "    export: {softmax_scale: {factor: 8, c: 0.1032}}    # for 8x",
    ]
    assert recipe_lines(hurts)[0].endswith("leave evaluation.softmax_scale_c at 0")
    assert scale_of(-0.2, 2, 0.86, "config").model_dump(exclude_none=True) == {"beta": 0.86, "apply": "config"}
