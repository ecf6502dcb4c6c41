"""Megatron-core's own model against the layout's idea of it, in a process group of one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_surgery.architectures import Join, rules
from model_surgery.checkpoint import Checkpoint
from model_surgery.errors import SurgeryError
from model_surgery.layout import Layout, read_rank
from model_surgery.megatron.attention import SDPAttention
from model_surgery.megatron.model import (
    build_model,
    full_logits,
    load_slices,
    mask_padded_vocabulary,
    token_losses,
)
from model_surgery.partition import PARTITION_AXIS
from model_surgery.shape import ModelShape

pytestmark = pytest.mark.usefixtures("megatron_of_one")

ATTENTION = "self_attention.linear_qkv"


def loaded(folder: Path, position_embedding: str = "none") -> torch.nn.Module:
    layout = Layout.load(folder)
    model = build_model(layout.shape, position_embedding=position_embedding).eval()
    load_slices(model, read_rank(folder, layout, 0))
    return model


@pytest.mark.parametrize("sizes", [{"tied": True}, {"qkv_bias": True}, {"kv_heads": 4, "head_dim": 16}])
def test_the_rules_name_exactly_the_parameters(sizes: dict[str, object], make_shape: Callable[..., ModelShape]) -> None:
    shape = make_shape(**sizes)
    model = build_model(shape, position_embedding="none")
    parameters = dict(model.named_parameters())
    assert parameters.keys() == {rule.target for rule in rules(shape)}
    assert sum(parameter.numel() for parameter in parameters.values()) == shape.parameters
    with_rope = build_model(shape, position_embedding="rope")
    assert dict(with_rope.named_parameters()).keys() == parameters.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_exactly_the_cut_parameters_are_marked(
    tied: bool, dtype: torch.dtype, make_shape: Callable[..., ModelShape]
) -> None:
    shape = make_shape(tied=tied)
    model = build_model(shape, position_embedding="none", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    marked = {name for name, p in model.named_parameters() if getattr(p, "tensor_model_parallel", False)}
    norms = {name for name, _ in model.named_parameters() if "layernorm" in name}
    assert len(norms) == 2 * shape.layers + 1
    assert marked == {name for name, _ in model.named_parameters()} - norms
    by_name = dict(model.named_parameters())
    for rule in rules(shape):
        if rule.join is not Join.REPLICATED:
            assert by_name[rule.target].partition_dim == PARTITION_AXIS[rule.join] - (rule.join is Join.GATE_UP)


def test_the_marks_are_those_that_megatron_makes_itself(make_shape: Callable[..., ModelShape]) -> None:
    from dataclasses import replace

    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    shape = make_shape()
    ours = build_model(shape, position_embedding="none")
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = SDPAttention
    theirs = GPTModel(
        config=replace(ours.config, perform_initialization=True),
        transformer_layer_spec=spec,
        vocab_size=shape.vocab,
        max_sequence_length=shape.context,
        position_embedding_type="none",
    )

    def marks(model: torch.nn.Module) -> dict[str, tuple[bool, int]]:
        return {
            name: (getattr(p, "tensor_model_parallel", False), getattr(p, "partition_dim", -1))
            for name, p in model.named_parameters()
        }

    assert marks(ours) == marks(theirs)


def test_megatron_takes_q_k_and_v_out_of_the_layout(layouts: dict[int, Path], tiny_model: Path) -> None:
    """By Megatron-core's own get_query_key_value_tensors: q [length, batch, heads, head_dim], k and v by KV head."""
    model = loaded(layouts[1])
    hidden = torch.randn(5, 1, 32)
    attention = model.decoder.layers[1].self_attention
    got = attention.get_query_key_value_tensors(hidden)
    with Checkpoint(tiny_model) as checkpoint:
        for part, tensor in zip("qkv", got, strict=True):
            weight = checkpoint.tensor(f"model.layers.1.self_attn.{part}_proj.weight")
            expected = (hidden @ weight.T).reshape(5, 1, -1, 8)
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position_embedding", ["rope", "none"])
def test_logits_and_losses_are_those_of_transformers(
    position_embedding: str, layouts: dict[int, Path], tiny_model: Path
) -> None:
    from model_surgery.verification.verify import source_logits

    row = torch.randint(96, (2, 25), generator=torch.Generator().manual_seed(3))
    tokens, labels = row[:, :-1], row[:, 1:]
    expected = source_logits(tiny_model, tokens, identity_rotation=position_embedding == "none")
    model = loaded(layouts[1], position_embedding)
    torch.testing.assert_close(full_logits(model, tokens), expected, rtol=0, atol=1e-5)
    losses = torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(token_losses(model, tokens, labels).flatten(), losses, rtol=0, atol=1e-5)
    if position_embedding == "rope":
        stock = AutoModelForCausalLM.from_pretrained(tiny_model)(tokens).logits
        torch.testing.assert_close(expected, stock, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ids_that_are_padding_cannot_be_sampled_nor_counted(
    dtype: torch.dtype, make_shape: Callable[..., ModelShape]
) -> None:
    model = build_model(make_shape(vocab=96), position_embedding="none", dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    tokens, labels = (torch.randint(90, (2, 12), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    plain = full_logits(model, tokens)
    model.output_layer.true_size = 90
    mask_padded_vocabulary(model.output_layer)
    masked = full_logits(model, tokens)
    assert torch.equal(masked[..., :90], plain[..., :90])
    assert (masked.float().softmax(-1)[..., 90:] == 0).all()
    expected = torch.nn.functional.cross_entropy(plain[..., :90].float().flatten(0, 1), labels.flatten())
    with torch.no_grad():
        got = token_losses(model, tokens, labels).mean()
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=1e-5 if dtype is torch.float32 else 2e-2)


def test_slices_that_do_not_fit_are_named(layouts: dict[int, Path]) -> None:
    layout = Layout.load(layouts[1])
    slices = read_rank(layouts[1], layout, 0)
    model = build_model(layout.shape, position_embedding="none")
    load_slices(model, {name: torch.zeros_like(tensor) for name, tensor in slices.items()})
    norm = "decoder.final_layernorm.weight"
    missing = {name: tensor for name, tensor in slices.items() if name != norm}
    with pytest.raises(SurgeryError, match=f"{norm} is in only one of layout and model"):
        load_slices(model, missing)
    with pytest.raises(SurgeryError, match="zz is in only one of layout and model"):
        load_slices(model, slices | {"zz": torch.ones(1)})
    with pytest.raises(SurgeryError, match=rf"{norm} has shape \[31\], model \[32\]"):
        load_slices(model, slices | {norm: torch.ones(31)})
    assert not any(parameter.any() for parameter in model.parameters())  # nothing was copied


def test_attention_is_causal_softmax_attention() -> None:
    length, heads, kv_heads, width = 6, 4, 2, 8
    q, k, v = (torch.randn(length, 2, n, width, dtype=torch.float64) for n in (heads, kv_heads, kv_heads))
    got = SDPAttention(config=None)(q, k, v, attention_mask=None)
    assert got.shape == (length, 2, heads * width)
    for batch in range(2):
        for head in range(heads):
            key, value = k[:, batch, head // 2], v[:, batch, head // 2]
            scores = q[:, batch, head] @ key.T / width**0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            expected = scores.softmax(-1) @ value
            torch.testing.assert_close(got[:, batch, head * width : (head + 1) * width], expected)
