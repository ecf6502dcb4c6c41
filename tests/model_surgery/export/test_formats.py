"""Which class an export has, and that transformers computes from it what the source's own class computes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from model_surgery import export
from model_surgery.config import ExportConfig
from model_surgery.errors import SurgeryError
from model_surgery.export.formats import format_of
from model_surgery.rotation import IDENTITY_ROTATION, rotating_layers
from model_surgery.transformers_registration import register_drope
from model_surgery.verification.reference import logits_of

CLASSES = {
    ("llama", "none"): "SmolLM3ForCausalLM",
    ("qwen2", "none"): "SmolLM3ForCausalLM",
    ("llama", "per_head"): "Qwen3ForCausalLM",
    ("qwen2", "per_head"): "Qwen3ForCausalLM",
    ("llama", "full"): "DroPELlamaForCausalLM",
    ("qwen2", "full"): "DroPEQwen2ForCausalLM",
    ("llama", "q_only"): "DroPELlamaForCausalLM",
    ("qwen2", "k_only"): "DroPEQwen2ForCausalLM",
}
CONTROLS = {
    ("llama", "none"): "LlamaForCausalLM",
    ("qwen2", "none"): "Qwen2ForCausalLM",
    ("qwen2", "per_head"): "Qwen3ForCausalLM",
    ("llama", "full"): "DroPELlamaForCausalLM",
    ("qwen2", "full"): "DroPEQwen2ForCausalLM",
    ("llama", "k_only"): "DroPELlamaForCausalLM",
}
TOKENS = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(11))


def exported(model, out: Path, **settings: object) -> Path:
    export.run(ExportConfig(**settings), layout_dir=model.folder, source=model.source, out_dir=out, export_check=None)
    return out


def load(folder: Path):
    register_drope()
    return AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)


def check(model, folder: Path, expected: str, *, rope: bool) -> None:
    """Class, whole weights, logits, cached generation, batches with padding at the left, save and load."""
    loaded, report = load(folder)
    loaded.eval()
    assert type(loaded).__name__ == expected
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    layers = list(range(model.shape.layers)) if rope else []
    assert rotating_layers(json.loads((folder / "config.json").read_text())) == layers
    assert rotating_layers(loaded.config.to_dict()) == layers
    logits = logits_of(loaded, TOKENS)
    torch.testing.assert_close(logits, model.logits(TOKENS, rope=rope), rtol=0, atol=1e-6)
    assert (logits - model.logits(TOKENS, rope=not rope)).abs().max() > 0.05
    check_generation(loaded)
    check_padding(loaded)


def check_generation(model) -> None:
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(TOKENS[:, :8])
    cached, uncached = (
        model.generate(TOKENS[:, :8], attention_mask=mask, use_cache=use_cache, **settings)
        for use_cache in (True, False)
    )
    assert cached.shape == (2, 20)
    assert torch.equal(cached, uncached)


def check_padding(model) -> None:
    """A row that is padded at the left gives the logits that it gives alone."""
    mask = torch.ones_like(TOKENS)
    mask[1, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        padded = model(TOKENS, attention_mask=mask, position_ids=positions).logits[1, 5:]
    torch.testing.assert_close(padded, logits_of(model, TOKENS[1:, 5:])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "norms"), CLASSES)
def test_without_positions(family: str, norms: str, trained: Callable, tmp_path: Path) -> None:
    model = trained(family, norms)
    check(model, exported(model, tmp_path / "export"), CLASSES[family, norms], rope=False)


@pytest.mark.parametrize(("family", "norms"), CONTROLS)
def test_with_rope_kept(family: str, norms: str, trained: Callable, tmp_path: Path) -> None:
    model = trained(family, norms, position_embedding="rope")
    check(model, exported(model, tmp_path / "export"), CONTROLS[family, norms], rope=True)


@pytest.mark.parametrize(("family", "expected"), [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM")])
def test_identity_rope(family: str, expected: str, trained: Callable, tmp_path: Path) -> None:
    """The same logits to the last bit as the export without a rotation, from the source's own class."""
    model = trained(family, "none")
    folder = exported(model, tmp_path / "identity", format="identity_rope")
    check(model, folder, expected, rope=False)
    smollm3, _ = load(exported(model, tmp_path / "auto"))
    assert torch.equal(logits_of(load(folder)[0].eval(), TOKENS), logits_of(smollm3.eval(), TOKENS))


def test_weights_are_the_sources_and_only_an_output_bias_of_zeros_is_new(trained: Callable, tmp_path: Path) -> None:
    model = trained("qwen2", "per_head")
    saved = load_file(exported(model, tmp_path / "export") / "model-00001.safetensors")
    expected = load_file(model.source / "model.safetensors") | model.norms
    new = {name: tensor for name, tensor in saved.items() if name not in expected}
    assert set(new) == {f"model.layers.{layer}.self_attn.o_proj.bias" for layer in range(2)}
    assert not any(tensor.any() for tensor in new.values())
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())


def test_transformers_4_reads_the_identity_too(trained: Callable, tmp_path: Path) -> None:
    """It knows rope_scaling and rope_theta, not rope_parameters."""
    folder = exported(trained("llama", "per_head"), tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_scaling"] == IDENTITY_ROTATION
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0


def test_mixtures_that_no_class_computes_are_refused(make_shape: Callable) -> None:
    with pytest.raises(SurgeryError, match="per_head norm on queries and full norm on keys: no class computes that"):
        format_of(make_shape(q_norm="per_head", k_norm="full"), "none", ExportConfig())
    with pytest.raises(SurgeryError, match="identity_rope: no stock class has a norm over all heads together"):
        format_of(make_shape(q_norm="full"), "none", ExportConfig(format="identity_rope"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "smollm3", "no_rope_layers": [0, 1, 0]}, [1]),
        ({"model_type": "smollm3", "no_rope_layers": None}, [0, 1, 2]),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 8.0}}, [0, 1, 2]),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 1e30}}, []),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 1e30}}, []),
        ({"model_type": "llama"}, [0, 1, 2]),
        ({"model_type": "llama_drope"}, []),
        ({"model_type": "qwen2_drope", "attention_type": "k_norm_nope"}, []),
        ({"model_type": "qwen2_drope", "attention_type": "k_norm"}, [0, 1, 2]),
    ],
)
def test_rotating_layers(changes: dict[str, object], expected: list[int]) -> None:
    assert rotating_layers({"num_hidden_layers": 3} | changes) == expected


def test_a_large_theta_is_no_identity() -> None:
    """What the docstring of IDENTITY_ROTATION says: the first frequency stays 1."""
    assert rotating_layers(LlamaConfig(num_hidden_layers=2, rope_theta=1e30).to_dict()) == [0, 1]
