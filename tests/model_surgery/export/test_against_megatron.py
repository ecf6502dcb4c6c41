"""The exported folder in transformers against the layout as the Megatron-core model that training runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_surgery import export
from model_surgery.config import ExportConfig
from model_surgery.layout import Layout, read_rank
from model_surgery.transformers_registration import register_drope
from model_surgery.verification.reference import logits_of

TOKENS = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(11))


@pytest.mark.parametrize("position_embedding", ["none", "rope"])
@pytest.mark.parametrize("norms", ["none", "full", "per_head", "q_only", "k_only"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.usefixtures("megatron_of_one")
def test_they_give_the_same_logits(
    family: str, norms: str, position_embedding: str, trained: Callable, tmp_path: Path
) -> None:
    from model_surgery.megatron.model import build_model, full_logits, load_slices

    model = trained(family, norms, tensor_parallel=1, position_embedding=position_embedding)
    layout = Layout.load(model.folder)
    megatron = build_model(layout.shape, position_embedding=position_embedding).eval()
    load_slices(megatron, read_rank(model.folder, layout, 0))
    expected = full_logits(megatron, TOKENS)[..., : layout.shape.vocab]
    export.run(
        ExportConfig(), layout_dir=model.folder, source=model.source, out_dir=tmp_path / "export", export_check=None
    )
    register_drope()
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    torch.testing.assert_close(logits_of(exported, TOKENS), expected, rtol=0, atol=2e-5)
