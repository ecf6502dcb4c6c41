"""The training stage, in real processes, against a plain Hugging Face + torch loop."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_surgery import export
from model_surgery.config import ExportConfig, SurgeryConfig
from model_surgery.convert import convert
from model_surgery.layout import Layout, read_sources
from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.metrics import read_events
from pipeline.recipe.recalibration import RecalibrationConfig

Train = Callable[..., list[dict[str, float]]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero_stage", "model", "weight_decay"),
    [(1, "untied", 0.0), pytest.param(2, "untied", 0.1, marks=pytest.mark.long), (3, "tied", 0.1)],
)
def test_tp2_dp2_equals_single_process_reference(
    zero_stage: int,
    model: str,
    weight_decay: float,
    models: dict[str, Path],
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Train,
    reference: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    expected = reference(models[model], shards, tmp_path / "rows", weight_decay=weight_decay)
    config = settings(zero_stage=zero_stage, weight_decay=weight_decay)
    lines = train(config, layouts[model], shards, tmp_path / "out")[1:]
    assert [line["step"] for line in lines] == list(range(1, len(expected["losses"]) + 1))
    assert [line["loss"] for line in lines] == pytest.approx(expected["losses"], abs=1e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx(expected["grad_norms"], abs=1e-5)
    assert [line["lr"] for line in lines] == pytest.approx(expected["lrs"], rel=1e-6)
    trained = Layout.load(tmp_path / "out" / "layout")
    for entry in trained.tensors:
        for name, tensor in read_sources(tmp_path / "out" / "layout", trained, entry).items():
            torch.testing.assert_close(tensor, expected["weights"][name], atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "tensor_parallel"), [("odd", 2), ("qwen2", 2), pytest.param("untied", 4, marks=pytest.mark.long)]
)
def test_padding_changes_nothing_and_stays_zero(
    model: str,
    tensor_parallel: int,
    models: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Train,
    reference: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Twenty steps with heads (odd: also feed-forward and ids) of zeros, against the model without them.

    untied: more ranks than KV heads.
    """
    layout = convert(SurgeryConfig(tensor_parallel=tensor_parallel), source=models[model], out_dir=tmp_path / "layout")
    assert layout.shape.padded(tensor_parallel) != layout.shape
    expected = reference(models[model], shards, tmp_path / "rows", weight_decay=0.1, steps=20)
    config = settings(tokens=20 * 8 * 32, weight_decay=0.1, data_parallel=1)
    lines = train(config, tmp_path / "layout", shards, tmp_path / "out")[1:]
    assert [line["loss"] for line in lines] == pytest.approx(expected["losses"], abs=2e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx(expected["grad_norms"], abs=2e-5)
    trained = Layout.load(tmp_path / "out" / "layout")
    for entry in trained.tensors:  # reading refuses padding that is not zero
        for name, tensor in read_sources(tmp_path / "out" / "layout", trained, entry).items():
            # A key's bias adds the same to all logits of a query: its gradient is rounding, which Adam follows.
            if not name.endswith("k_proj.bias"):
                torch.testing.assert_close(tensor, expected["weights"][name], atol=3e-4, rtol=0)


@pytest.mark.slow
def test_bf16_resumes_bit_identical_and_its_export_passes(
    tiny_model: Path,
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Train,
    without_measured: Callable[[list[dict]], list[dict]],
    tmp_path: Path,
) -> None:
    """Bit-identical also where the deterministic mode is asked for when it goes on: nothing here draws or races."""
    config = settings(data_parallel=1, zero_stage=2, precision="bf16")
    whole = train(config, layouts["untied"], shards, tmp_path / "whole")
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole", broken)
    # What a kill after step 9 leaves: the checkpoint of step 8 whole, a later one cut, and metrics beyond both.
    assert [path.name for path in folders.complete(broken / "checkpoints")] == ["step-00000004", "step-00000008"]
    (broken / "checkpoints" / "step-00000009").mkdir()
    lines = (broken / "metrics.jsonl").read_text().splitlines()
    (broken / "metrics.jsonl").write_text("\n".join(lines[:10]) + '\n{"step": 10, "lo')
    (broken / "layout" / "layout.json").unlink()
    deterministic = config.model_copy(update={"deterministic": True})
    resumed = train(deterministic, layouts["untied"], shards, broken)
    assert without_measured(resumed) == without_measured(whole)
    assert Layout.load(broken / "layout").digest() == Layout.load(tmp_path / "whole" / "layout").digest()
    assert not (broken / "checkpoints" / "step-00000009").exists()
    assert json.loads(lines[0])["step"] == 0
    facts = export.run(
        ExportConfig(),
        layout_dir=broken / "layout",
        source=tiny_model,
        out_dir=tmp_path / "export",
        export_check=broken / "probe.safetensors",
    )
    assert 1e-6 < facts["mean_difference"] < facts["limit"] == 5e-2


@pytest.mark.slow
def test_the_validation_may_change_while_a_run_is_under_way(
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Train,
    without_measured: Callable[[list[dict]], list[dict]],
    tmp_path: Path,
) -> None:
    """The trained weights do not depend on it; the best step is looked for among validations of the same rows.

    So where an older version began it, whose attempts did not record their rows.
    """
    config = settings(data_parallel=1, keep_best=True, keep_checkpoints=9, validation_every=2)
    whole = train(config, layouts["untied"], shards, tmp_path / "whole")
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole", resumed)
    for path in folders.complete(resumed / "checkpoints"):
        if folders.step_of(path) > 4:
            shutil.rmtree(path)
    (resumed / "layout" / "layout.json").unlink()
    begun = (resumed / "events.jsonl").read_text()
    assert '"validation_rows": 7, ' in begun
    (resumed / "events.jsonl").write_text(begun.replace('"validation_rows": 7, ', ""))
    changes = {"validation_every": 3, "validation_rows": 2, "validation_lengths": (1, 2)}
    lines = train(config.model_copy(update=changes), layouts["untied"], shards, resumed)

    def trained(lines: list[dict]) -> list[dict]:
        return [
            {name: value for name, value in line.items() if not name.startswith("validation")}
            for line in without_measured(lines)
        ]

    assert trained(lines) == trained(whole)
    assert Layout.load(resumed / "layout").digest() == Layout.load(tmp_path / "whole" / "layout").digest()
    assert [line["step"] for line in lines if "validation_loss_2x" in line] == [6, 9, 10]
    assert {6, 8} <= {folders.step_of(path) for path in folders.complete(resumed / "checkpoints")}
    events = [event for event in read_events(resumed) if event["event"] == "started"]
    assert [event["validation_rows"] for event in events] == [7, 2]
