import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from eval.answers.piece_attention import NAME, aligned, attend, attending_in_pieces, joined


def states(heads: int, kv_heads: int, tokens: int, keys: int, dtype: torch.dtype) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    sizes = ((3, heads, tokens, 16), (3, kv_heads, keys, 16), (3, kv_heads, keys, 16))
    return [torch.randn(size, generator=draw).to(dtype) for size in sizes]


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """torch's own attention under the whole mask, in fp32."""
    groups, past = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    key, value = (one.float().repeat_interleave(groups, 1) for one in (key, value))
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(past)
    return scaled_dot_product_attention(query.float(), key, value, attn_mask=mask, scale=scale)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 70), (70, 70), (1, 1), (2, 3), (33, 70), (69, 70), (300, 900)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_a_piece_sees_what_a_mask_would_show_it(
    heads: int, kv_heads: int, tokens: int, keys: int, dtype: torch.dtype, close: float
) -> None:
    query, key, value = states(heads, kv_heads, tokens, keys, dtype)
    expected = masked(query, key, value, 0.3)
    assert (attend(query, key, value, 0.3).float() - expected).abs().max() < close
    assert (aligned(query, key, value, heads // kv_heads, 0.3).float() - expected).abs().max() < close
    if 1 < tokens < keys:
        attended = joined(query, key, value, keys - tokens, heads // kv_heads, 0.3)
        assert (attended.float() - expected).abs().max() < close
        assert attended.dtype == dtype


def test_large_logits_do_not_overflow() -> None:
    query, key, value = states(4, 2, 20, 50, torch.float32)
    assert (attend(100 * query, key, value, 1.0) - masked(100 * query, key, value, 1.0)).abs().max() < 1e-4


def test_the_model_is_left_as_it_was(source) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="sdpa")
    ids = torch.arange(3, 60)[None]
    before = model(ids).logits
    with attending_in_pieces(model):
        assert model.config._attn_implementation == NAME
        assert (model(ids).logits - before).abs().max() < 1e-4
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)
