"""The model card says from what the model was made and how long it was trained."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model_surgery.layout import Layout
from model_surgery.model_card import model_card, source_name


@pytest.fixture
def layout(layouts: dict[int, Path]) -> Callable[..., Layout]:
    return lambda **changes: Layout.load(layouts[2]).model_copy(update=changes)


def test_it_names_source_steps_tokens_and_check(layout: Callable[..., Layout]) -> None:
    trained = layout(source="some/where/SmolLM-360M", trained_steps=12_000, trained_tokens=12_582_912_000)
    facts = {
        "dtype": "bfloat16",
        "loss_exported": 2.51234,
        "loss_trained": 2.51236,
        "mean_difference": 1.5e-3,
        "probe_tokens": 8192,
    }
    card = model_card(trained, facts)
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
    assert "export check" not in model_card(layout(), {"dtype": "float32"})


def test_a_control_says_that_it_has_rope(layout: Callable[..., Layout]) -> None:
    card = model_card(layout(position_embedding="rope"), {"dtype": "float32"})
    assert "RoPE kept" in card
    assert "without positional embeddings" not in card


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
