"""Layers and loss fused by torch's compiler, in a process group of one; more ranks are trained in tests/pipeline."""

import json
from typing import Any

import pytest

from tests.model_surgery.test_transformer_engine import python

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return json.loads(python("-m", "tests.model_surgery.compiled_worker"))


def test_losses_and_gradients_are_those_of_the_other_layers(result: dict[str, Any]) -> None:
    """In fp32 to rounding; in bf16, with RoPE and attending within documents, as near to fp32 as torch's are."""
    assert result["reason against"] is None
    for name, (ours, torchs, kept) in result["to torch's"].items():
        if "bf16" in name:
            assert all(one < 1.5 * other + 1e-3 for one, other in zip(ours, torchs, strict=True))
        else:
            assert torchs == [0, 0] and max(ours) < 1e-5
        assert kept[0] <= kept[1], name


def test_all_layers_share_one_graph(result: dict[str, Any]) -> None:
    """The others are those of the trial and of the loss; nothing is left to Python."""
    assert (result["graphs"], result["breaks"]) == (3, 0)


def test_evaluation_and_hooks_compile_nothing(result: dict[str, Any]) -> None:
    assert set(result["evaluation"].values()) == {True}
    assert result["graphs later"] == result["graphs"]
