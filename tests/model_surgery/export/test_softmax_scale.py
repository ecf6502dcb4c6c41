"""The softmax scale in an exported model: folded, or left in its config."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_surgery import export
from model_surgery.config import ExportConfig
from model_surgery.errors import SurgeryError
from model_surgery.transformers_registration import register_drope
from model_surgery.verification.reference import logits_of

TOKENS = torch.randint(96, (2, 25), generator=torch.Generator().manual_seed(13))
BETA = 1.37
KINDS = [
    ("llama", "none"),
    ("qwen2", "none"),
    ("llama", "full"),
    ("qwen2", "full"),
    ("llama", "per_head"),
    ("qwen2", "per_head"),
    ("llama", "q_only"),
    ("qwen2", "q_only"),
    ("llama", "k_only"),
    ("qwen2", "k_only"),
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(model, name: str, export_check: Path | None = None, **settings: object) -> Path:
        config = ExportConfig(softmax_scale=settings.pop("scale", None), **settings)
        export.run(
            config, layout_dir=model.folder, source=model.source, out_dir=tmp_path / name, export_check=export_check
        )
        return tmp_path / name

    return make


def load(folder: Path):
    register_drope()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model-00001.safetensors")


def write_export_check(path: Path, logits: torch.Tensor) -> Path:
    tokens, labels = TOKENS[:, :-1].contiguous(), TOKENS[:, 1:].contiguous()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    save_file({"tokens": tokens, "labels": labels, "losses": losses.reshape(labels.shape)}, path)
    return path


@pytest.mark.parametrize(("beta", "rounding"), [(2.0, 0.0), (BETA, 1e-5)])
@pytest.mark.parametrize(("family", "norms"), KINDS)
def test_folded_it_is_exact(
    family: str, norms: str, beta: float, rounding: float, trained: Callable, write: Callable
) -> None:
    """The folded model's logits are those of the plain one with its attention scaling multiplied by beta.

    To the last bit where multiplying by beta rounds nothing, else to fp32's rounding of the products.
    """
    model = trained(family, norms)
    plain, folded = write(model, "plain"), write(model, "folded", scale={"beta": beta})
    reference = load(plain)
    for layer in reference.model.layers:
        layer.self_attn.scaling *= beta
    logits = logits_of(load(folded), TOKENS)
    torch.testing.assert_close(logits, logits_of(reference, TOKENS), rtol=0, atol=rounding)
    torch.testing.assert_close(logits, model.logits(TOKENS, beta=beta), rtol=0, atol=1e-5)
    assert (logits - model.logits(TOKENS)).abs().max() > 0.01


@pytest.mark.parametrize(("family", "norms"), KINDS)
def test_only_the_queries_change_and_the_config_says_so(
    family: str, norms: str, trained: Callable, write: Callable
) -> None:
    model = trained(family, norms)
    folded = write(model, "folded", scale={"beta": BETA})
    plain, scaled = tensors_of(write(model, "plain")), tensors_of(folded)
    changed = {name for name, tensor in plain.items() if not torch.equal(scaled[name], tensor)}
    ends = {name.split(".", 4)[-1] for name in changed}
    bias = {"q_proj.bias"} if family == "qwen2" else set()
    assert ends == ({"q_proj.weight"} | bias if norms in ("none", "k_only") else {"q_norm.weight"})
    assert all(torch.equal(scaled[name], plain[name] * BETA) for name in changed)
    recorded = {"beta": BETA, "apply": "weights"}
    assert json.loads((folded / "config.json").read_text())["drope"]["softmax_scale"] == recorded
    assert load(folded).config.drope["softmax_scale"] == recorded


def test_beta_is_multiplied_before_the_cast(trained: Callable, write: Callable) -> None:
    model = trained("llama", "full")
    plain, folded = write(model, "plain"), write(model, "folded", scale={"beta": BETA}, dtype="bfloat16")
    name = "model.layers.1.self_attn.q_norm.weight"
    assert torch.equal(tensors_of(folded)[name], (tensors_of(plain)[name] * BETA).bfloat16())
    assert not torch.equal(tensors_of(folded)[name], tensors_of(plain)[name].bfloat16() * BETA)


@pytest.mark.parametrize(("family", "norms"), [("llama", "none"), ("qwen2", "per_head")])
def test_left_in_the_config_a_stock_class_does_not_read_it(
    family: str, norms: str, trained: Callable, write: Callable
) -> None:
    model = trained(family, norms)
    folder = write(model, "left", scale={"factor": 4, "c": 0.2, "apply": "config"})
    config = json.loads((folder / "config.json").read_text())
    assert config["drope"]["softmax_scale"] == {
        "beta": pytest.approx(1.277259),
        "factor": 4,
        "c": 0.2,
        "apply": "config",
    }
    assert "softmax_scale" not in config
    assert torch.equal(logits_of(load(folder), TOKENS), logits_of(load(write(model, "plain")), TOKENS))
    assert "**not applied**" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("family", "norms"), [("llama", "full"), ("qwen2", "k_only")])
def test_left_in_the_config_the_drope_classes_apply_it(
    family: str, norms: str, trained: Callable, write: Callable
) -> None:
    model = trained(family, norms)
    folder = write(model, "left", scale={"beta": BETA, "apply": "config"})
    assert load(folder).config.softmax_scale == pytest.approx(BETA / model.shape.head_dim**0.5)
    torch.testing.assert_close(logits_of(load(folder), TOKENS), model.logits(TOKENS, beta=BETA), rtol=0, atol=2e-6)
    plain = write(model, "plain")
    assert all(torch.equal(tensors_of(folder)[name], tensor) for name, tensor in tensors_of(plain).items())


@pytest.mark.parametrize("apply", ["weights", "config"])
@pytest.mark.parametrize(("family", "norms"), [("qwen2", "none"), ("llama", "full"), ("llama", "per_head")])
def test_the_loss_check_undoes_it(
    family: str, norms: str, apply: str, trained: Callable, write: Callable, tmp_path: Path
) -> None:
    """It compares with the model as trained: it holds with the scale, and fails on a model that has another one."""
    model = trained(family, norms)
    export_check = write_export_check(tmp_path / "export_check", model.logits(TOKENS[:, :-1]))
    folder = write(model, "right", export_check, scale={"beta": BETA, "apply": apply})
    assert "| export check | loss" in (folder / "README.md").read_text()
    other = write_export_check(tmp_path / "other", model.logits(TOKENS[:, :-1], beta=1.01))
    with pytest.raises(SurgeryError, match="the exported model's loss differs"):
        write(model, "wrong", other, scale={"beta": BETA, "apply": apply})
