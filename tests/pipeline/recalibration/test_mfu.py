"""MFU's formula, and the peaks of GPUs by the names that CUDA gives them."""

import pytest

from model_surgery.known_models import KNOWN_MODELS
from pipeline.recalibration.mfu import mfu, peak_flops, training_flops

LLAMA = KNOWN_MODELS["meta-llama/Llama-2-7b-hf"]
SMOLLM = KNOWN_MODELS["HuggingFaceTB/SmolLM-360M"]


def test_flops_are_six_per_weight_and_token_plus_attention() -> None:
    matrices = LLAMA.parameters - LLAMA.vocab * LLAMA.hidden
    assert training_flops(LLAMA, tokens=10, length=4096) == 10 * (6 * matrices + 6 * 32 * 4096 * 4096)
    # A tied head multiplies too; 15 query heads attend, however few KV heads there are.
    assert training_flops(SMOLLM, tokens=1, length=2048) == 6 * SMOLLM.parameters + 6 * 32 * 15 * 64 * 2048


def test_flops_are_what_torch_counts() -> None:
    """Products of matrices in transformers' own model, forward and backward; eager attention computes all pairs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    length = 64
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        attn_implementation="eager",
    )
    model, ids = LlamaForCausalLM(config), torch.randint(128, (3, length))
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    shape = SMOLLM.model_copy(
        update={
            "layers": 2,
            "hidden": 64,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 16,
            "ffn": 160,
            "vocab": 128,
            "tied": False,
        }
    )
    masked_half = 3 * length * 6 * 2 * 4 * 16 * length
    assert training_flops(shape, tokens=3 * length, length=length) + masked_half == pytest.approx(
        counter.get_total_flops(), rel=0.01
    )


def test_mfu_is_a_share_of_the_peak_of_all_devices() -> None:
    flops = training_flops(LLAMA, tokens=1_000_000, length=4096)
    assert mfu(LLAMA, 1_000_000, 4096, seconds=2.0, devices=8, peak=flops / 4) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
        ("NVIDIA B200", 2250),
    ],
)
def test_peaks_are_found_by_the_names_of_cuda(name: str, tflops: int) -> None:
    assert peak_flops(name) == tflops * 1e12


def test_an_unknown_device_has_no_peak() -> None:
    assert peak_flops("CPU (x86_64)") is None
    assert peak_flops("NVIDIA H1000") is None
