"""The DroPE format's own classes: as remote code in a process of its own, registered here, saved and loaded again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from model_surgery import export
from model_surgery.config import ExportConfig
from model_surgery.hub_code.configuration_drope import DroPELlamaConfig, DroPEQwen2Config
from model_surgery.hub_code.modeling_drope import DroPELlamaForCausalLM, DroPEQwen2ForCausalLM
from model_surgery.transformers_registration import register_drope
from model_surgery.verification.reference import logits_of

TOKENS = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(11))
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
REMOTE = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

folder, tokens, out = sys.argv[1:]
tokens = load_file(tokens)["tokens"]
mask = torch.ones_like(tokens)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
settings = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
cached, uncached = (model.generate(tokens, use_cache=use_cache, **settings) for use_cache in (True, False))
assert torch.equal(cached, uncached)
with torch.inference_mode():
    logits = model(tokens, attention_mask=mask, use_cache=False).logits
    decoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    states = decoder(tokens, attention_mask=mask, use_cache=False).last_hidden_state
    assert torch.equal(model.lm_head(states), logits)
save_file({"logits": logits}, out)
model.save_pretrained(out + "-saved")
"""


@pytest.fixture
def drope_export(trained: Callable, tmp_path: Path) -> Callable[..., tuple[object, Path]]:
    def make(family: str, norms: str, **settings: object) -> tuple[object, Path]:
        model = trained(family, norms)
        folder = tmp_path / f"{family}-{norms}"
        export.run(
            ExportConfig(**settings), layout_dir=model.folder, source=model.source, out_dir=folder, export_check=None
        )
        return model, folder

    return make


def run_remotely(folder: Path, scratch: Path) -> torch.Tensor:
    """Logits of the folder by its own code, in a process that knows neither this project nor a network."""
    scratch.mkdir()
    save_file({"tokens": TOKENS}, scratch / "tokens")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules"), "PYTHONPATH": ""}
    arguments = [str(folder), str(scratch / "tokens"), str(scratch / "out")]
    # -I: neither the working directory nor the user's packages, so that model_surgery cannot be imported from there.
    subprocess.run([sys.executable, "-I", "-c", REMOTE, *arguments], check=True, env=environment, cwd=scratch)
    return load_file(scratch / "out")["logits"]


@pytest.mark.parametrize(
    ("family", "norms"), [("llama", "full"), pytest.param("qwen2", "k_only", marks=pytest.mark.long)]
)
def test_remote_code_in_a_fresh_process(family: str, norms: str, drope_export: Callable, tmp_path: Path) -> None:
    model, folder = drope_export(family, norms)
    expected = model.logits(TOKENS)
    torch.testing.assert_close(run_remotely(folder, tmp_path / "first"), expected, rtol=0, atol=1e-6)
    saved = tmp_path / "first" / "out-saved"
    assert {"configuration_drope.py", "modeling_drope.py"} <= {path.name for path in saved.iterdir()}
    torch.testing.assert_close(run_remotely(saved, tmp_path / "second"), expected, rtol=0, atol=1e-6)


def test_registered_it_needs_no_trust_and_saves_its_code(drope_export: Callable, tmp_path: Path) -> None:
    model, folder = drope_export("llama", "full")
    register_drope()
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert type(loaded) is DroPELlamaForCausalLM
    loaded.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(run_remotely(tmp_path / "saved", tmp_path / "remote"), model.logits(TOKENS))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert again.config.attention_type == "qk_norm_nope"
    assert torch.equal(logits_of(again, TOKENS), logits_of(loaded.eval(), TOKENS))


def test_the_exported_code_is_ours_verbatim(drope_export: Callable) -> None:
    _, folder = drope_export("qwen2", "q_only")
    for name in ("configuration_drope.py", "modeling_drope.py"):
        assert (folder / name).read_bytes() == (Path(export.__file__).parents[1] / "hub_code" / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen2_drope"
    assert config["attention_type"] == "q_norm_nope"
    assert "softmax_scale" not in config


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation: str, drope_export: Callable) -> None:
    model, folder = drope_export("llama", "k_only")
    register_drope()
    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=implementation).eval()
    torch.testing.assert_close(logits_of(loaded, TOKENS), model.logits(TOKENS), rtol=0, atol=1e-5)
    mask = torch.ones_like(TOKENS)
    mask[0, :7] = 0
    with torch.inference_mode():
        padded = loaded(TOKENS, attention_mask=mask).logits[0, 7:]
        attentions = loaded(TOKENS, output_attentions=True).attentions if implementation == "eager" else ()
    torch.testing.assert_close(padded, logits_of(loaded, TOKENS[:1, 7:])[0], rtol=0, atol=1e-5)
    for weights in attentions:
        assert weights.shape == (2, 4, 24, 24)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 24))


def test_bfloat16(drope_export: Callable) -> None:
    model, folder = drope_export("qwen2", "full", dtype="bfloat16")
    register_drope()
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    expected = model.logits(TOKENS)
    assert (logits_of(loaded, TOKENS).float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_gradients_reach_every_weight(drope_export: Callable) -> None:
    _, folder = drope_export("llama", "full")
    register_drope()
    loaded = AutoModelForCausalLM.from_pretrained(folder).train()
    loaded(TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in loaded.parameters())


@pytest.mark.parametrize(
    ("config", "expected"), [(DroPELlamaConfig, DroPELlamaForCausalLM), (DroPEQwen2Config, DroPEQwen2ForCausalLM)]
)
def test_new_models_begin_as_transformers_begins_them(config: type, expected: type) -> None:
    """Norms of ones, and matrices of the config's width."""
    register_drope()
    made = AutoModelForCausalLM.from_config(config(**SIZES, attention_type="qk_norm_nope", initializer_range=0.5))
    assert type(made) is expected
    attention = made.model.layers[1].self_attn
    assert torch.equal(attention.q_norm.weight, torch.ones(32))
    assert torch.equal(attention.k_norm.weight, torch.ones(16))
    assert 0.4 < attention.q_proj.weight.std() < 0.6
    assert type(AutoModel.from_config(made.config)) is type(made.model)


def test_without_norms_it_is_llama_without_rotation(tiny_model: Path) -> None:
    identity = {"rope_type": "linear", "factor": 1e30, "rope_theta": 10000.0}
    llama = LlamaForCausalLM.from_pretrained(tiny_model, rope_parameters=identity).eval()
    raw = {key: value for key, value in llama.config.to_dict().items() if key != "model_type"}
    ours = DroPELlamaForCausalLM(DroPELlamaConfig(**raw, attention_type="nope")).eval()
    ours.load_state_dict(llama.state_dict())
    assert torch.equal(logits_of(ours, TOKENS), logits_of(llama, TOKENS))


def test_the_softmax_scale_of_the_config_replaces_the_usual_one(drope_export: Callable) -> None:
    model, folder = drope_export("llama", "full")
    register_drope()
    config = AutoConfig.from_pretrained(folder, softmax_scale=1.3 / 8**0.5)
    loaded = AutoModelForCausalLM.from_pretrained(folder, config=config).eval()
    torch.testing.assert_close(logits_of(loaded, TOKENS), model.logits(TOKENS, beta=1.3), rtol=0, atol=1e-5)


def test_what_it_cannot_compute_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_type = 'v_norm_nope' is not known"):
        DroPELlamaConfig(**SIZES, attention_type="v_norm_nope")
    sliding = DroPEQwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match="use_sliding_window is not supported"):
        DroPEQwen2ForCausalLM(sliding)


def test_no_tensor_parallel_plan_is_promised() -> None:
    """Llama's plan would cut the projections between heads, and each rank's norm would see its own heads alone."""
    made = DroPELlamaForCausalLM(DroPELlamaConfig(**SIZES, attention_type="qk_norm_nope"))
    assert not made.model.tp_plan
