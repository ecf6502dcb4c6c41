"""The recipe of a real pretrained checkpoint, through every stage at TP 2, shortened to 25 steps."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.manifest import Manifest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SHORT = (
    "recalibration.tokens=102400",
    "recalibration.schedule.warmup_steps=5",
    "recalibration.validation_every=25",
    "recalibration.validation_rows=8",
    "evaluation.context_factors=[1, 2]",
    "evaluation.batch_tokens=2048",
    "evaluation.harness.0.limit=20",
    "evaluation.harness.1.limit=20",
    "evaluation.recall.samples=20",
    "evaluation.longrope2={population: 4, generations: 1}",
)


def test_tinystories_through_all_stages(shared_data: Path, tmp_path: Path, drope: Any) -> None:
    recipe = ROOT / "recipes" / "tinystories-656k.yaml"
    result = drope("run", recipe, f"runs_dir={tmp_path}", *SHORT, cwd=ROOT, timeout=590)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "tinystories-656k"
    facts = {path.parent.name: Manifest.load(path.parent).facts for path in run.glob("*/manifest.json")}
    assert facts["surgery"]["verification"]["comparisons"]["with RoPE"]["max_difference"] < 4e-4
    # The drop alone costs about two nats; 25 steps win some of it back, and help the control less.
    assert 5.2 < facts["recalibration"]["validation_loss_before"] < 5.7
    assert facts["recalibration"]["validation_loss_after"] < 4.9
    assert facts["control"]["validation_loss_after"] < facts["recalibration"]["validation_loss_after"]
    for model in ("drope", "control"):
        assert facts["export"][model]["mean_difference"] < 1e-5
    scores = json.loads((run / "evaluation" / "results.json").read_text())["scores"]
    found = {(score["variant"], score["task"], score["context_factor"]): score["value"] for score in scores}
    assert found["rope", "loss", 1] == pytest.approx(3.44, abs=0.1)
    assert found["rope", "loss", 1] < found["yarn", "loss", 2] < found["rope", "loss", 2]
    assert found["drope", "loss", 2] - found["drope", "loss", 1] < 0.2
    assert 0 <= found["drope", "arc_easy", 1] <= 1
    page = (run / "report" / "report.html").read_text()
    assert "DroPE on TinyStories-656K" in page and page.count("<svg") >= 3
