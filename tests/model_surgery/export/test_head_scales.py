"""Scales of single heads in an exported model: folded, they are those multiplied onto its queries."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from model_surgery import export
from model_surgery.config import ExportConfig
from model_surgery.errors import SurgeryError
from model_surgery.transformers_registration import register_drope
from model_surgery.verification.reference import logits_of

TOKENS = torch.randint(96, (2, 25), generator=torch.Generator().manual_seed(13))


def write(model, folder: Path, scales: list[list[float]] | None) -> Path:
    export.run(
        ExportConfig(),
        layout_dir=model.folder,
        source=model.source,
        out_dir=folder,
        export_check=None,
        head_scales=scales,
    )
    return folder


def load(folder: Path):
    register_drope()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def scales_for(model) -> list[list[float]]:
    drawn = 0.5 + 2 * torch.rand(model.shape.layers, model.shape.heads, generator=torch.Generator().manual_seed(1))
    return drawn.tolist()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("norms", ["none", "full", "q_only", "k_only"])
def test_folded_they_are_the_queries_multiplied(family: str, norms: str, trained: Callable, tmp_path: Path) -> None:
    model = trained(family, norms)
    scales = scales_for(model)
    plain, folded = load(write(model, tmp_path / "plain", None)), load(write(model, tmp_path / "folded", scales))
    without = logits_of(plain, TOKENS)
    for layer, factors in zip(plain.model.layers, scales, strict=True):
        attention = layer.self_attn
        last = attention.q_proj if getattr(attention, "q_norm", None) is None else attention.q_norm
        wide = torch.tensor(factors).repeat_interleave(attention.head_dim)
        last.register_forward_hook(lambda module, args, queries, wide=wide: queries * wide)
    torch.testing.assert_close(logits_of(folded, TOKENS), logits_of(plain, TOKENS), rtol=0, atol=2e-5)
    assert (logits_of(folded, TOKENS) - without).abs().max() > 0.01
    config = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert config["drope"]["head_scales"] == scales
    card = (tmp_path / "folded" / "README.md").read_text()
    assert "one for each query head and layer" in card and "No softmax scale is applied" not in card


def test_ones_are_the_plain_export_but_for_its_words(trained: Callable, tmp_path: Path) -> None:
    model = trained("qwen2", "none")
    ones = [[1.0] * model.shape.heads] * model.shape.layers
    files = [
        load_file(write(model, tmp_path / name, scales) / "model-00001.safetensors")
        for name, scales in (("plain", None), ("ones", ones))
    ]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())


def test_what_cannot_bear_them_is_refused_and_nothing_is_written(trained: Callable, tmp_path: Path) -> None:
    normed, plain = trained("llama", "per_head"), trained("llama", "none")
    with pytest.raises(SurgeryError, match="whose weight all heads of a layer share"):
        write(normed, tmp_path / "normed", scales_for(normed))
    with pytest.raises(SurgeryError, match=r"1 layers of \[4\] head scales; the model has 2 of 4"):
        write(plain, tmp_path / "short", scales_for(plain)[:1])
    assert not list(tmp_path.iterdir())
