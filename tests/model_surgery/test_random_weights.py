"""Drawn checkpoints: what transformers would draw, the same bytes for the same seed, whole or not there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from foundation.errors import DiskError
from model_surgery.checkpoint import Checkpoint
from model_surgery.errors import SurgeryError
from model_surgery.random_weights import draw_checkpoint
from model_surgery.transformers_registration import register_drope

WEIGHTS = "model.safetensors"
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "initializer_range": 0.05,
}
LLAMA = {"model_type": "llama", **SIZES}


def drawn(folder: Path, config: dict[str, Any] = LLAMA, seed: int = 0) -> dict[str, torch.Tensor]:
    draw_checkpoint(folder, config, seed)
    return load_file(folder / WEIGHTS)


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        {"model_type": "qwen2", **SIZES, "tie_word_embeddings": True},
        {"model_type": "llama_drope", **SIZES, "attention_type": "qk_norm_nope"},
    ],
    ids=lambda config: config["model_type"],
)
def test_it_is_what_transformers_draws(config: dict[str, Any], tmp_path: Path) -> None:
    """The same tensors and constants, and numbers of the same distribution; loaded without a word."""
    tensors = drawn(tmp_path, config)
    Checkpoint(tmp_path)
    register_drope()
    theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), dtype=torch.float32)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ours, expected = loaded.state_dict(), theirs.state_dict()
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.ndim == 1:
            assert torch.equal(ours[name], tensor), name
            continue
        for matrix in (ours[name], tensor):  # five standard errors of a mean and of a standard deviation
            assert abs(matrix.mean()) < 5 * 0.05 / matrix.numel() ** 0.5, name
            assert abs(matrix.std() - 0.05) < 5 * 0.05 / (2 * matrix.numel()) ** 0.5, name
    matrices = [tensor.flatten() for tensor in tensors.values() if tensor.ndim == 2]
    assert len(torch.cat(matrices).unique()) > 0.99 * sum(map(len, matrices))  # no tensor is drawn like another


def test_the_seed_alone_decides_every_byte(tmp_path: Path) -> None:
    first, other = drawn(tmp_path / "a"), drawn(tmp_path / "c", seed=1)
    torch.manual_seed(7)
    drawn(tmp_path / "b")
    for name in (WEIGHTS, "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert all(torch.equal(tensor, other[name]) == (tensor.ndim == 1) for name, tensor in first.items())


def test_numbers_are_drawn_in_fp32_and_rounded_to_the_dtype_of_the_config(tmp_path: Path) -> None:
    exact, rounded = drawn(tmp_path / "fp32"), drawn(tmp_path / "bf16", {**LLAMA, "dtype": "bfloat16"})
    assert {tensor.dtype for tensor in exact.values()} == {torch.float32}
    assert all(torch.equal(tensor.bfloat16(), rounded[name]) for name, tensor in exact.items())


def test_a_config_without_a_range_gives_the_default_of_transformers(tmp_path: Path) -> None:
    tensors = drawn(tmp_path, {name: value for name, value in LLAMA.items() if name != "initializer_range"})
    assert tensors["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf"), "0.02", None, True])
def test_a_range_that_is_none_is_refused_before_anything_is_written(value: object, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"config\.json: initializer_range = .* must be a number above 0"):
        drawn(tmp_path / "out", {**LLAMA, "initializer_range": value})
    assert not (tmp_path / "out").exists()


def test_another_rule_says_the_deviation_of_every_matrix(tmp_path: Path) -> None:
    asked: list[str] = []

    def rule(name: str, size: tuple[int, ...]) -> float:
        asked.append(name)
        return 3.0 if "embed_tokens" in name else size[1] ** -0.5

    draw_checkpoint(tmp_path, LLAMA, 0, std=rule)
    tensors = load_file(tmp_path / WEIGHTS)
    assert set(asked) == {name for name, tensor in tensors.items() if tensor.ndim == 2}
    assert tensors["model.embed_tokens.weight"].std().item() == pytest.approx(3.0, rel=0.1)
    assert tensors["model.layers.0.mlp.down_proj.weight"].std().item() == pytest.approx(64**-0.5, rel=0.1)


def test_what_is_cut_off_is_no_checkpoint(tmp_path: Path) -> None:
    def rule(name: str, size: tuple[int, ...]) -> float:
        if "layers.1" in name:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        draw_checkpoint(tmp_path, LLAMA, 0, std=rule)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(40_000))
    with pytest.raises(DiskError, match=r"model\.safetensors: the disk is full"):
        draw_checkpoint(small_disk / "out", LLAMA, 0)
    assert list((small_disk / "out").iterdir()) == []


def test_the_config_is_written_as_it_was_given(tmp_path: Path) -> None:
    config = {**LLAMA, "something_else": [1, {"é": None}]}
    drawn(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == config
