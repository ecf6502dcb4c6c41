"""Recipes with QK-norm through all stages, as a user's shell runs them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline.runs.manifest import Manifest


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", pytest.param("per_head", marks=pytest.mark.long)])
def test_a_recipe_with_qk_norm_runs_through_all_stages(
    kind: str, raw_recipe: dict[str, Any], write_recipe: Callable[..., Path], drope: Any, tmp_path: Path
) -> None:
    """Calibrated on the run's own rows, with its control, scaled at export and in the evaluation."""
    recipe = write_recipe(
        surgery=raw_recipe["surgery"] | {"qk_norm": kind, "qk_norm_init": "calibrated", "calibration_rows": 3},
        recalibration=raw_recipe["recalibration"] | {"control": True},
        export={"softmax_scale": {"factor": 2, "c": 0.1}},
        evaluation=raw_recipe["evaluation"] | {"variants": ["rope", "drope", "drope_scaled", "control"]},
    )
    result = drope("run", recipe)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "tiny"
    facts = {path.parent.name: Manifest.load(path.parent).facts for path in run.glob("*/manifest.json")}
    calibration = facts["surgery"]["calibration"]
    assert calibration["tokens"] == 3 * 32
    assert len(calibration["gains"]) == 2
    assert "with QK-norm" in facts["surgery"]["verification"]["comparisons"]
    for model in ("drope", "control"):
        assert facts["export"][model]["mean_difference"] < 1e-5
    assert (run / "export" / "drope-scaled" / "config.json").is_file()
    manifest = Manifest.load(run / "surgery")
    assert manifest.inputs["data"] == Manifest.load(run / "data").digest
    again = drope("run", recipe)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("complete, skipped") == 7


def test_calibration_needs_the_rows(raw_recipe: dict[str, Any], write_recipe: Callable[..., Path], drope: Any) -> None:
    recipe = write_recipe(surgery=raw_recipe["surgery"] | {"qk_norm": "full", "qk_norm_init": "calibrated"})
    result = drope("surgery", recipe)
    assert result.returncode == 2
    assert "stage surgery needs stage data, which is not complete" in result.stderr
    raw = yaml.safe_load(recipe.read_text())
    assert not (Path(raw["runs_dir"]) / "tiny" / "surgery").exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_published_drope_model_is_trained_further(
    raw_recipe: dict[str, Any], write_recipe: Callable[..., Path], drope: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """Its norms are kept, and it leaves in the format that it came in."""
    source = Path(shutil.copytree(tiny_model, tmp_path / "drope"))
    weights = source / "model.safetensors"
    names = {"model.layers.{}.self_attn.q_norm.weight": 32, "model.layers.{}.self_attn.k_norm.weight": 16}
    norms = {name.format(layer): torch.rand(width) for layer in (0, 1) for name, width in names.items()}
    save_file(load_file(weights) | norms, weights, metadata={"format": "pt"})
    raw = json.loads((source / "config.json").read_text())
    changes = {"model_type": "llama_drope", "attention_type": "qk_norm_nope"}
    (source / "config.json").write_text(json.dumps(raw | changes))
    evaluation = raw_recipe["evaluation"] | {"variants": ["drope", "drope_scaled"]}
    result = drope("run", write_recipe(model={"path": str(source)}, evaluation=evaluation))
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "tiny"
    facts = {path.parent.name: Manifest.load(path.parent).facts for path in run.glob("*/manifest.json")}
    assert facts["surgery"]["verification"]["comparisons"].keys() == {"with RoPE", "without PE"}
    assert facts["export"]["drope"]["class"] == "DroPELlamaForCausalLM"
    assert facts["export"]["drope"]["mean_difference"] < 1e-5
    assert json.loads((run / "export" / "drope" / "config.json").read_text()).items() >= changes.items()
