"""Sequence parallelism and recomputation at TP 2 x DP 2: against transformers' model, and against the same without."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_surgery import export
from model_surgery.config import ExportConfig, SurgeryConfig
from model_surgery.convert import convert
from model_surgery.layout import Layout, read_sources
from model_surgery.qk_norm import initial_norms, with_qk_norm
from model_surgery.shape import read_shape
from pipeline.launch.processes import torchrun
from pipeline.recipe.recalibration import RecalibrationConfig
from tests.pipeline.recalibration.conftest import BATCH, ROW
from tests.pipeline.recalibration.test_qk_norm_training import add_trained_norms

DECAY = {"weight_decay": 0.1}
AGAINST_REFERENCE = {
    "full norms": ("full", "odd", {"zero_stage": 1, "sequence_parallel": True}),
    "full norms, ZeRO 3": ("full", "odd", {"zero_stage": 3, "sequence_parallel": True, "recompute": "full"}),
    "norms per head, masked": ("per_head", "qwen2", {"zero_stage": 2, "sequence_parallel": True} | DECAY),
}
SHORT = {"tokens": 4 * BATCH * ROW}
RECOMPUTED = {
    "bf16, ZeRO 1, tied": ("none", "tied", {"zero_stage": 1, "precision": "bf16"} | SHORT),
    "bf16, ZeRO 3, full norms": ("full", "odd", {"zero_stage": 3, "precision": "bf16"} | SHORT),
    "fp32, ZeRO 2, masked": ("per_head", "qwen2", {"zero_stage": 2} | SHORT),
}


@pytest.fixture(scope="module")
def norms(models: dict[str, Path]) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """Weights of the norms by (kind, model)."""
    draw = torch.Generator().manual_seed(0)
    drawn = {}
    for kind, model in (("full", "odd"), ("per_head", "qwen2")):
        shape = read_shape(models[model])
        added = initial_norms(shape, with_qk_norm(shape, kind, model))
        drawn[kind, model] = {name: torch.rand(len(one), generator=draw) + 0.5 for name, one in added.items()}
    return drawn


@pytest.fixture(scope="module")
def trained(
    models: dict[str, Path],
    layouts: dict[str, Path],
    norms: dict[tuple[str, str], dict[str, torch.Tensor]],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, list]]:
    """What the worker found for each case, all by the same four processes."""
    out, placed = tmp_path_factory.mktemp("options"), {("none", "tied"): layouts["tied"]}
    for (kind, model), weights in norms.items():
        placed[kind, model] = out / f"layout-{kind}"
        config = SurgeryConfig(tensor_parallel=2, qk_norm=kind)
        convert(config, source=models[model], out_dir=placed[kind, model], norms=weights)
    masked = {"mask_documents": True}
    expected = {name: (*where, masked | more if "masked" in name else more) for name, (*where, more) in all_cases()}
    cases = [
        {
            "name": name,
            "config": settings(**changes).model_dump(mode="json", exclude_unset=True),
            "layout": str(placed[kind, model]),
            "shards": str(shards),
            "out": str(out),
            "tensor_parallel": 2,
        }
        for name, (kind, model, changes) in expected.items()
    ]
    (out / "cases.json").write_text(json.dumps(cases))
    worker = "tests.pipeline.recalibration.model_options_worker"
    torchrun(worker, [str(out / "cases.json")], processes=4, log=out / "log")
    return {case["name"]: json.loads((out / f"{case['name']}.json").read_text()) for case in cases}


def all_cases() -> list[tuple[str, tuple[str, str, dict[str, Any]]]]:
    again = [(f"{name} again", (*where, more | {"recompute": "full"})) for name, (*where, more) in RECOMPUTED.items()]
    return [*AGAINST_REFERENCE.items(), *RECOMPUTED.items(), *again]


@pytest.mark.slow
@pytest.mark.parametrize("name", AGAINST_REFERENCE)
def test_parts_of_rows_are_trained_like_whole_ones(
    name: str,
    trained: dict[str, dict[str, list]],
    models: dict[str, Path],
    norms: dict[tuple[str, str], dict[str, torch.Tensor]],
    shards: Path,
    reference: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Norms outside of attention see a part of every row, those of queries and keys whole rows of some heads."""
    kind, model, changes = AGAINST_REFERENCE[name]
    expected = reference(
        models[model],
        shards,
        tmp_path / "rows",
        weight_decay=changes.get("weight_decay", 0.0),
        mask_documents="masked" in name,
        prepare=lambda built: add_trained_norms(built, read_shape(models[model]), norms[kind, model]),
    )
    assert trained[name]["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert trained[name]["grad_norms"] == pytest.approx(expected["grad_norms"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputed_layers_change_no_bit(name: str, trained: dict[str, dict[str, list]]) -> None:
    assert trained[f"{name} again"] == trained[name]
    assert len(set(trained[name]["losses"])) == 4


@pytest.mark.slow
def test_matrices_decay_and_vectors_do_not(trained: dict[str, dict[str, list]]) -> None:
    """Of a model with biases and norms of queries and keys."""
    layer = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
    expected = {f"decoder.layers.{number}.{name}.weight" for number in (0, 1) for name in layer}
    assert set(trained["norms per head, masked"]["decaying"]) == expected | {"embedding.word_embeddings.weight"}


@pytest.mark.slow
def test_the_stage_with_both_at_zero_3(
    models: dict[str, Path],
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Callable[..., list[dict[str, float]]],
    reference: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Validation, the probe, the trained layout and its export, as without them."""
    expected = reference(models["untied"], shards, tmp_path / "rows", weight_decay=0.1)
    config = settings(zero_stage=3, sequence_parallel=True, recompute="full", **DECAY)
    lines = train(config, layouts["untied"], shards, tmp_path / "out")
    assert [line["loss"] for line in lines[1:]] == pytest.approx(expected["losses"], abs=1e-5)
    assert [line["grad_norm"] for line in lines[1:]] == pytest.approx(expected["grad_norms"], abs=1e-5)
    assert lines[-1]["validation_loss"] == pytest.approx(expected["validation_loss"], abs=1e-5)
    trained = Layout.load(tmp_path / "out" / "layout")
    for entry in trained.tensors:
        for name, tensor in read_sources(tmp_path / "out" / "layout", trained, entry).items():
            torch.testing.assert_close(tensor, expected["weights"][name], atol=2e-5, rtol=0)
    facts = export.run(
        ExportConfig(),
        layout_dir=tmp_path / "out" / "layout",
        source=models["untied"],
        out_dir=tmp_path / "export",
        export_check=tmp_path / "out" / "probe.safetensors",
    )
    assert facts["mean_difference"] < facts["limit"] == 1e-4
