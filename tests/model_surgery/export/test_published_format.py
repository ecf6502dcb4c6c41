"""Published DroPE checkpoints through surgery and export: the bytes and the logits that they came with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from model_surgery import export
from model_surgery.config import ExportConfig, SurgeryConfig
from model_surgery.convert import convert
from model_surgery.transformers_registration import register_drope
from model_surgery.verification.reference import logits_of

TOKENS = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(12))
TYPES = ("nope", "qk_norm_nope", "q_norm_nope", "k_norm_nope")


@pytest.mark.parametrize("tensor_parallel", [1, 2])
@pytest.mark.parametrize("attention_type", TYPES)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_there_and_back(
    family: str, attention_type: str, tensor_parallel: int, published: Callable[[str, str], Path], tmp_path: Path
) -> None:
    source = published(family, attention_type)
    convert(SurgeryConfig(tensor_parallel=tensor_parallel), source=source, out_dir=tmp_path / "layout")
    out = tmp_path / "export"
    export.run(ExportConfig(), layout_dir=tmp_path / "layout", source=source, out_dir=out, export_check=None)
    expected, got = load_file(source / "model.safetensors"), load_file(out / "model-00001.safetensors")
    unused = {"q_norm_nope": "k_norm.weight", "k_norm_nope": "q_norm.weight"}.get(attention_type, "no name")
    kept = {name: tensor for name, tensor in expected.items() if not name.endswith(unused)}
    zeros = {name for name in got if name.endswith("o_proj.bias")}  # of SmolLM3, for a Qwen2 without norms
    assert len(zeros) == (2 if (family, attention_type) == ("qwen2", "nope") else 0)
    assert got.keys() - zeros == kept.keys()
    for name, tensor in kept.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8))
    exported_type = json.loads((out / "config.json").read_text()).get("attention_type")
    assert exported_type == (None if attention_type == "nope" else attention_type)
    register_drope()
    model, report = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]  # the norm that such a checkpoint holds and does not use
    ours = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits_of(ours.eval(), TOKENS), logits_of(model.eval(), TOKENS))


def test_our_export_is_a_source_again(trained: Callable, tmp_path: Path) -> None:
    """Surgery reads an export with full-width norms; its weights come out as they went in."""
    model = trained("llama", "full")
    first, second = tmp_path / "first", tmp_path / "second"
    export.run(ExportConfig(), layout_dir=model.folder, source=model.source, out_dir=first, export_check=None)
    layout = convert(SurgeryConfig(tensor_parallel=2), source=first, out_dir=tmp_path / "layout")
    assert layout.source_position_embedding == "none"
    export.run(ExportConfig(), layout_dir=tmp_path / "layout", source=first, out_dir=second, export_check=None)
    one, two = (load_file(folder / "model-00001.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
