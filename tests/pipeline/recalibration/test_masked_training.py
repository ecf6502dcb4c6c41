"""Training with masked documents, in real processes, against a plain Hugging Face + torch loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model_surgery import export
from model_surgery.config import ExportConfig
from model_surgery.layout import Layout, read_sources
from pipeline.recipe.recalibration import RecalibrationConfig

Train = Callable[..., list[dict[str, float]]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero_stage", "model", "micro_batch", "position"),
    [(1, "untied", 1, "none"), pytest.param(3, "tied", 2, "rope", marks=pytest.mark.long)],
)
def test_tp2_dp2_with_accumulation_equals_single_process_reference(
    zero_stage: int,
    model: str,
    micro_batch: int,
    position: str,
    models: dict[str, Path],
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Train,
    reference: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """The loss is the mean over the counted tokens of the global batch, though they are spread unevenly."""
    expected = reference(models[model], shards, tmp_path / "rows", position=position, mask_documents=True)
    counts = torch.stack([row["counted"].sum() for row in expected["rows"].train])
    assert counts.min() + 5 < counts.max() <= 32
    config = settings(zero_stage=zero_stage, micro_batch=micro_batch, mask_documents=True)
    lines = train(config, layouts[model], shards, tmp_path / "out", position)
    assert [line["loss"] for line in lines[1:]] == pytest.approx(expected["losses"], abs=1e-5)
    assert [line["grad_norm"] for line in lines[1:]] == pytest.approx(expected["grad_norms"], abs=1e-5)
    assert lines[-1]["validation_loss"] == pytest.approx(expected["validation_loss"], abs=2e-5)
    assert lines[-1]["tokens"] == config.tokens
    trained = Layout.load(tmp_path / "out" / "layout")
    for entry in trained.tensors:
        for name, tensor in read_sources(tmp_path / "out" / "layout", trained, entry).items():
            torch.testing.assert_close(tensor, expected["weights"][name], atol=2e-5, rtol=0)
    if position == "none":
        check_probe(tmp_path, models[model], expected["model"])


def check_probe(folder: Path, source: Path, trained: torch.nn.Module) -> None:
    """The probe holds the losses under plain causal attention, and the export reproduces them."""
    probe = load_file(folder / "out" / "probe.safetensors")
    with torch.no_grad():
        logits = trained(probe["tokens"], attention_mask=torch.ones_like(probe["tokens"]), use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), probe["labels"].flatten(), reduction="none")
    torch.testing.assert_close(probe["losses"].flatten(), losses, atol=1e-4, rtol=0)
    facts = export.run(
        ExportConfig(),
        layout_dir=folder / "out" / "layout",
        source=source,
        out_dir=folder / "export",
        export_check=folder / "out" / "probe.safetensors",
    )
    assert facts["mean_difference"] < facts["limit"]
