"""The model card says from what the model was made and how long it was trained."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model_surgery.config import ExportConfig
from model_surgery.export.formats import format_of
from model_surgery.export.model_card import model_card, source_name
from model_surgery.layout import Layout
from model_surgery.softmax_scale import SoftmaxScale


@pytest.fixture
def layout(layouts: dict[int, Path]) -> Callable[..., Layout]:
    return lambda **changes: Layout.load(layouts[2]).model_copy(update=changes)


def card_of(layout: Layout, facts: dict[str, object], scale: dict[str, object] | None = None) -> str:
    form = format_of(layout.shape, layout.position_embedding, ExportConfig())
    return model_card(layout, form, facts, scale and SoftmaxScale(**scale))


def test_it_names_source_steps_tokens_and_check(layout: Callable[..., Layout]) -> None:
    trained = layout(source="some/where/SmolLM-360M", trained_steps=12_000, trained_tokens=12_582_912_000)
    facts = {
        "dtype": "bfloat16",
        "loss_exported": 2.51234,
        "loss_trained": 2.51236,
        "mean_difference": 1.5e-3,
        "probe_tokens": 8192,
    }
    card = card_of(trained, facts)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# SmolLM-360M, positional embeddings dropped" in card
    assert "| source | some/where/SmolLM-360M |" in card
    assert f"`{trained.source_fingerprint[:16]}`" in card
    assert f"`{trained.digest()[:16]}`" in card
    assert "| steps / tokens | 12,000 / 12,582,912,000 |" in card
    assert "| training context | 32 tokens |" in card
    assert "(bfloat16) |" in card
    assert "loss 2.5123 against 2.5124" in card
    assert "1.5e-03 over 8192 tokens" in card


def test_without_a_probe_no_check_is_claimed(layout: Callable[..., Layout]) -> None:
    assert "export check" not in card_of(layout(), {"dtype": "float32"})


def test_a_control_says_that_it_has_rope(layout: Callable[..., Layout]) -> None:
    card = card_of(layout(position_embedding="rope"), {"dtype": "float32"})
    assert "RoPE kept" in card
    assert "without positional embeddings" not in card


def test_a_source_that_had_no_rope_lost_none(layout: Callable[..., Layout]) -> None:
    assert "made from a RoPE model by dropping its rotation" in card_of(layout(), {"dtype": "float32"})
    again = card_of(layout(source_position_embedding="none"), {"dtype": "float32"})
    assert "trained further from a model that had none already" in again
    assert "RoPE model" not in again


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (
            "/home/u/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM-1.7B/snapshots/4b9d",
            "HuggingFaceTB/SmolLM-1.7B",
        ),
        ("models/tinystories-656k", "models/tinystories-656k"),
        ("models--a--b/other", "models--a--b/other"),
    ],
)
def test_a_checkpoint_in_the_hubs_cache_has_its_hub_id(path: str, name: str) -> None:
    assert source_name(path) == name


def with_norms(layout: Layout, **changes: object) -> Layout:
    return layout.model_copy(update={"shape": layout.shape.model_copy(update=changes)})


def test_it_says_how_to_load_and_which_class_it_is(layout: Callable[..., Layout]) -> None:
    stock = card_of(layout(), {"dtype": "float32"})
    assert "| class | `SmolLM3ForCausalLM`: Llama's block with RoPE switched off in every layer |" in stock
    assert 'from_pretrained("this folder")' in stock
    assert "no remote code is needed" in stock
    assert "trust_remote_code" not in stock
    assert "**llama.cpp does not compute it rightly**" in stock
    own = card_of(with_norms(layout(), q_norm="full", k_norm="full"), {"dtype": "float32"})
    assert 'from_pretrained("this folder", trust_remote_code=True)' in own
    assert "`trust_remote_code` runs `configuration_drope.py` and `modeling_drope.py` of this folder" in own


def test_norms_and_how_they_began(layout: Callable[..., Layout]) -> None:
    assert "RMSNorm" not in card_of(layout(), {"dtype": "float32"})
    inserted = with_norms(layout(inserted_norms="calibrated"), q_norm="per_head", k_norm="per_head")
    row = "| RMSNorm | queries over each head, keys over each head; put in before training, weights calibrated |"
    assert row in card_of(inserted, {"dtype": "float32"})
    result = with_norms(layout(), k_norm="full")
    assert "| RMSNorm | keys over all heads together; the source's |" in card_of(result, {"dtype": "float32"})


def test_the_softmax_scale_is_stated(layout: Callable[..., Layout]) -> None:
    plain, normed = layout(), with_norms(layout(), q_norm="full")
    assert "No softmax scale is applied." in card_of(plain, {"dtype": "float32"})
    folded = card_of(plain, {"dtype": "float32"}, {"factor": 8, "c": 0.103})
    assert "beta = 1 + 0.103 ln 8 = 1.21418, folded into the weights" in folded
    assert "every layer's `q_proj.weight`; add none" in folded
    biased = card_of(with_norms(plain, qkv_bias=True), {"dtype": "float32"}, {"beta": 1.5})
    assert "`q_proj.weight` and `q_proj.bias`" in biased
    assert "every layer's `q_norm.weight`" in card_of(normed, {"dtype": "float32"}, {"beta": 1.5})
    left = {"beta": 1.5, "apply": "config"}
    assert "**not applied**: `SmolLM3ForCausalLM` does not read it" in card_of(plain, {"dtype": "float32"}, left)
    assert "This model's code applies `softmax_scale`" in card_of(normed, {"dtype": "float32"}, left)
