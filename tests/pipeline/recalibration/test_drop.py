"""Training with RoPE up to a step and without it from there, in one run, against transformers and torch's AdamW."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_surgery.config import ExportConfig
from model_surgery.export import run as export
from model_surgery.layout import Layout, read_joined
from pipeline.recalibration.checkpoints.folders import complete
from pipeline.recalibration.checkpoints.state import read_state
from pipeline.recalibration.metrics import read_events
from pipeline.recipe.recalibration import RecalibrationConfig

Train = Callable[..., list[dict[str, Any]]]


@pytest.mark.slow
def test_a_drop_in_the_run_equals_a_drop_by_hand(
    models: dict[str, Path],
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Train,
    reference: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    expected = reference(models["qwen2"], shards, tmp_path / "rows", position="rope", drop_at_step=6)
    config = settings(drop_at_step=6, keep_checkpoints=9)
    lines = train(config, layouts["qwen2"], shards, tmp_path / "out")
    assert [line["loss"] for line in lines[1:]] == pytest.approx(expected["losses"], abs=2e-5)
    assert [line["grad_norm"] for line in lines[1:]] == pytest.approx(expected["grad_norms"], abs=2e-5)
    states = [read_state(path) for path in complete(tmp_path / "out" / "checkpoints")]
    assert [(state.step, state.position_embedding) for state in states] == [(4, "rope"), (6, "rope"), (8, "none")]
    started = [event for event in read_events(tmp_path / "out") if event["event"] == "started"]
    assert [(event["step"], event["position_embedding"]) for event in started] == [(0, "rope"), (6, "none")]
    assert Layout.load(tmp_path / "out" / "layout").position_embedding == "none"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "zero_stage", "precision"),
    [pytest.param("full", 3, "fp32", marks=pytest.mark.long), ("per_head", 1, "bf16")],
)
def test_norms_of_queries_and_keys_may_be_put_in_at_the_drop(
    kind: str,
    zero_stage: int,
    precision: str,
    models: dict[str, Path],
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Train,
    tmp_path: Path,
) -> None:
    config = settings(drop_at_step=6, drop_qk_norm=kind, zero_stage=zero_stage, precision=precision, data_parallel=1)
    lines = train(config, layouts["odd"], shards, tmp_path / "out")
    assert [line["step"] for line in lines] == list(range(11))
    layout = Layout.load(tmp_path / "out" / "layout")
    assert (layout.shape.q_norm, layout.shape.k_norm, layout.inserted_norms) == (kind, kind, "ones")
    norms = [entry for entry in layout.tensors if entry.target.endswith(("q_layernorm.weight", "k_layernorm.weight"))]
    assert len(norms) == 2 * layout.shape.layers
    for entry in norms:  # begun with ones, and trained for four steps
        weight = read_joined(tmp_path / "out" / "layout", layout, entry)
        assert 0 < (weight - 1).abs().max() < 4 * 3e-3
    facts = export(
        ExportConfig(),
        layout_dir=tmp_path / "out" / "layout",
        source=models["odd"],
        out_dir=tmp_path / "export",
        export_check=tmp_path / "out" / "probe.safetensors",
    )
    assert facts["mean_difference"] < facts["limit"]
