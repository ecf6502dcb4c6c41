"""The softmax scale's settings and which tensors it is multiplied into."""

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from model_surgery.softmax_scale import SoftmaxScale, fold, scaled_tensors, softmax_scale


def test_the_papers_formula() -> None:
    assert softmax_scale(1, 0.412) == 1
    assert softmax_scale(math.e, 0.25) == pytest.approx(1.25)
    assert SoftmaxScale(factor=8, c=0.103).value == softmax_scale(8, 0.103)
    assert SoftmaxScale(beta=1.2).value == 1.2
    assert SoftmaxScale(factor=8, c=0.103).formula() == "beta = 1 + 0.103 ln 8 = 1.21418"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either beta, or factor and c"),
        ({"beta": 1.2, "factor": 2, "c": 0.1}, "give either beta, or factor and c"),
        ({"factor": 2}, "factor and c go together"),
        ({"beta": 1.2, "c": 0.1}, "factor and c go together"),
        ({"beta": 0}, "greater than 0"),
        ({"beta": -1.0}, "greater than 0"),
        ({"beta": float("inf")}, "finite"),
        ({"factor": 0.5, "c": 0.1}, "greater than or equal to 1"),
        ({"factor": 2, "c": -0.1}, "greater than or equal to 0"),
        ({"factor": 2, "c": float("nan")}, "finite"),
        ({"beta": 1.2, "apply": "both"}, "'weights' or 'config'"),
    ],
)
def test_refused_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SoftmaxScale(**settings)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ({}, {"q_proj.weight", "q_proj.bias"}),
        ({"k_norm": "full"}, {"q_proj.weight", "q_proj.bias"}),
        ({"q_norm": "full"}, {"q_norm.weight"}),
        ({"q_norm": "per_head", "k_norm": "per_head"}, {"q_norm.weight"}),
    ],
)
def test_what_is_scaled(norms: dict[str, str], expected: set[str], make_shape: Callable) -> None:
    shape = make_shape(qkv_bias=True, **norms)
    assert set(scaled_tensors(shape)) == expected
    names = ["q_proj.weight", "q_proj.bias", "k_proj.weight", "q_norm.weight", "k_norm.weight", "o_proj.weight"]
    tensors = {f"model.layers.0.self_attn.{name}": torch.ones(3, dtype=torch.bfloat16) for name in names}
    for name, tensor in fold(tensors, shape, 1.2).items():
        if name.removeprefix("model.layers.0.self_attn.") in expected:
            assert torch.equal(tensor, torch.full((3,), 1.2))  # in fp32, not rounded to bfloat16
        else:
            assert tensor is tensors[name]
