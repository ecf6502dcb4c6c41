"""Recipes with QK-norm through all stages, as a user's shell runs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.manifest import Manifest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "per_head"])
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
