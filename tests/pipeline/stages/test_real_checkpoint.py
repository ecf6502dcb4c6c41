"""The recipes of real pretrained checkpoints through every stage, shortened to a few steps."""

import json
import shutil
from collections.abc import Callable
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


@pytest.mark.long
def test_tinystories_through_all_stages(extra_data: Callable[[str], Path], tmp_path: Path, drope: Any) -> None:
    recipe = ROOT / "recipes" / "tinystories-656k.yaml"
    local = [
        f"model.path={extra_data('models/tinystories-656k')}",
        f"data.sources.0={{path: {extra_data('text/tinystories-train.jsonl')}, split: train}}",
        f"data.sources.1={{path: {extra_data('text/tinystories-validation.jsonl')}, split: validation}}",
        "data.tokens=null",
        f"evaluation.harness.0.path={extra_data('benchmarks/arc_easy.jsonl')}",
        r'evaluation.harness.0.suffix="\nAnswer:"',
        f"evaluation.harness.1.path={extra_data('benchmarks/piqa.jsonl')}",
    ]
    result = drope("run", recipe, f"runs_dir={tmp_path}", *local, *SHORT, cwd=ROOT, timeout=590)
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
    values = {(score["variant"], score["task"], score["context_factor"]): score["value"] for score in scores}
    assert values["rope", "loss", 1] == pytest.approx(3.44, abs=0.1)
    assert values["rope", "loss", 1] < values["yarn", "loss", 2] < values["rope", "loss", 2]
    assert values["drope", "loss", 2] - values["drope", "loss", 1] < 0.2
    assert 0 <= values["drope", "arc_easy", 1] <= 1
    page = (run / "report" / "report.html").read_text()
    assert "DroPE on TinyStories-656K" in page and page.count("<svg") >= 3


@pytest.mark.long
def test_two_layers_of_smollm2_through_all_stages(
    smollm2_two_layers: Path, real_texts: list[str], tmp_path: Path, drope: Any
) -> None:
    """recipes/smollm2-135m.yaml with fewer layers and steps, at TP 3, the one its 9 query and 3 KV heads divide by."""
    model = Path(shutil.copytree(smollm2_two_layers, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    for name, texts in (("train", real_texts[:300]), ("validation", real_texts[300:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    changes = [
        f"runs_dir={tmp_path / 'runs'}",
        f"model.path={model}",
        f"data.sources.0.path={tmp_path / 'train.jsonl'}",
        f"data.sources.1.path={tmp_path / 'validation.jsonl'}",
        "data.row_length=128",
        "surgery.tensor_parallel=3",
        "recalibration.tokens=2048",
        "recalibration.validation_every=4",
        "evaluation.loss.tokens=512",
        "evaluation.niah=null",
        "export.dtype=float32",  # two layers of thirty are at 14 nats, where rounding to bf16 is more than the limit
    ]
    result = drope("run", ROOT / "recipes" / "smollm2-135m.yaml", *changes, cwd=ROOT, timeout=590)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "smollm2-135m"
    facts = {path.parent.name: Manifest.load(path.parent).facts for path in run.glob("*/manifest.json")}
    assert facts["surgery"]["verification"]["comparisons"]["with RoPE"]["top1_agreement"] > 0.99
    before, after = (facts["recalibration"][f"validation_loss_{when}"] for when in ("before", "after"))
    assert after < before - 0.5
    assert facts["export"]["drope"]["mean_difference"] < 1e-3
    assert "DroPE on SmolLM2-135M" in (run / "report" / "report.html").read_text()
