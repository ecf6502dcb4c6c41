"""Training with norms on queries and keys at TP 2 x DP 2, against transformers' model with torch's own RMSNorm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.layout import Layout, read_sources
from model_surgery.qk_norm import initial_norms, with_qk_norm
from model_surgery.shape import ModelShape, read_shape
from pipeline.recipe.recalibration import RecalibrationConfig


def add_trained_norms(model: torch.nn.Module, shape: ModelShape, norms: dict[str, torch.Tensor]) -> None:
    """torch.nn.RMSNorm modules, trained with the rest, on what q_proj and k_proj give."""
    for number, layer in enumerate(model.model.layers):
        for part in "qk":
            weight = norms[f"model.layers.{number}.self_attn.{part}_norm.weight"]
            norm = torch.nn.RMSNorm(len(weight), eps=shape.norm_eps)
            norm.weight.data = weight.clone()
            setattr(layer.self_attn, f"{part}_norm", norm)

            def normed(module: object, inputs: object, output: torch.Tensor, norm=norm) -> torch.Tensor:
                return norm(output.unflatten(-1, (-1, len(norm.weight)))).flatten(-2)

            getattr(layer.self_attn, f"{part}_proj").register_forward_hook(normed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "model", "zero_stage", "layers"),
    [
        ("full", "odd", 1, "torch"),
        pytest.param("full", "odd", 1, "compiled", marks=[pytest.mark.long, pytest.mark.real_processes]),
        pytest.param("full", "untied", 3, "torch", marks=pytest.mark.long),
        ("per_head", "qwen2", 2, "torch"),
        pytest.param("per_head", "qwen2", 2, "compiled", marks=[pytest.mark.long, pytest.mark.real_processes]),
        pytest.param("per_head", "odd", 3, "torch", marks=pytest.mark.long),
    ],
)
def test_tp2_dp2_equals_single_process_reference(
    kind: str,
    model: str,
    zero_stage: int,
    layers: str,
    models: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Callable[..., list[dict[str, float]]],
    reference: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """odd, qwen2: beside heads of zeros, which must count neither in the norm's divisor nor in any gradient."""
    source, shape = models[model], read_shape(models[model])
    wanted_shape = with_qk_norm(shape, kind, model)
    draw = torch.Generator().manual_seed(0)
    norms = {
        name: torch.rand(len(one), generator=draw) + 0.5 for name, one in initial_norms(shape, wanted_shape).items()
    }
    config = SurgeryConfig(tensor_parallel=2, qk_norm=kind)
    convert(config, source=source, out_dir=tmp_path / "layout", norms=norms)

    def prepare(built: torch.nn.Module) -> None:
        add_trained_norms(built, shape, norms)

    expected = reference(source, shards, tmp_path / "rows", weight_decay=0.1, prepare=prepare)
    assert all((expected["weights"][name] - norm).abs().max() > 1e-3 for name, norm in norms.items())
    config = settings(zero_stage=zero_stage, layers=layers, weight_decay=0.1)
    lines = train(config, tmp_path / "layout", shards, tmp_path / "out")[1:]
    assert [line["loss"] for line in lines] == pytest.approx(expected["losses"], abs=1e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx(expected["grad_norms"], abs=1e-5)
    trained = Layout.load(tmp_path / "out" / "layout")
    assert trained.inserted_norms == "ones"
    seen = set()
    for entry in trained.tensors:
        for name, tensor in read_sources(tmp_path / "out" / "layout", trained, entry).items():
            seen.add(name)
            torch.testing.assert_close(tensor, expected["weights"][name], atol=1e-4, rtol=0, msg=name)
    assert norms.keys() < seen
