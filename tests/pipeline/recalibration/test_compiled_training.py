"""Training with torch's layers compiled, which any machine with a C++ compiler can do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.recalibration import run as stage
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.metrics import read_events
from pipeline.recipe.recalibration import RecalibrationConfig

pytestmark = pytest.mark.real_processes  # They compile what others leave as it is.

Settings = Callable[..., RecalibrationConfig]
Train = Callable[..., list[dict[str, float]]]


@pytest.mark.slow
@pytest.mark.long
def test_compiled_layers_train_as_transformers_does(
    models: dict[str, Path],
    layouts: dict[str, Path],
    shards: Path,
    settings: Settings,
    train: Train,
    reference: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """TP 2 x DP 2, where graphs end at the communication; biases, padded heads; layers are looked into on the way.

    Norms see a part of every row, and their gradients are summed within the graph.
    """
    expected = reference(models["qwen2"], shards, tmp_path / "rows", weight_decay=0.1)
    changes = {"weight_decay": 0.1, "zero_stage": 2, "sequence_parallel": True, "layer_numbers_every": 3}
    config = settings(layers="compiled", **changes)
    out = tmp_path / "out"
    lines = train(config, layouts["qwen2"], shards, out)[1:]
    assert [line["loss"] for line in lines] == pytest.approx(expected["losses"], abs=1e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx(expected["grad_norms"], abs=1e-5)
    assert lines[-1]["validation_loss"] == pytest.approx(expected["validation_loss"], abs=1e-5)
    assert len(lines[2]["attention_logit_max"]) == 2
    facts = stage.facts_of(TrainingSpec.model_validate_json((out / "job.json").read_bytes()))
    assert (facts["layers"], facts["layers_reason"]) == ("compiled", "recalibration.layers = compiled")
    assert [event["layers"] for event in read_events(out) if event["event"] == "started"] == ["compiled"]


@pytest.mark.long
@pytest.mark.slow
def test_where_nothing_can_be_compiled_nothing_begins(
    layouts: dict[str, Path],
    shards: Path,
    settings: Settings,
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage, "WORKER", "tests.pipeline.recalibration.no_compiler_worker")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))  # or what was compiled before would do
    with pytest.raises(RecipeError, match=r"layers = compiled: torch.compile: .*compiler.*; use auto or torch"):
        train(settings(layers="compiled"), layouts["tied"], shards, tmp_path / "out")
    assert not list((tmp_path / "out").glob("checkpoints/step-*"))
