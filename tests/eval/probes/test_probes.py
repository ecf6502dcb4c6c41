"""Positions and attention: definitions by hand, and the paper's propositions on real models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eval.errors import EvaluationError
from eval.probes.run import ProbeResults, Subject, run
from eval.probes.theory import (
    BIASES,
    centred_weights,
    constant,
    embedded,
    load_model,
    perturbed,
    positional_bias,
    prefix_spread,
    probe,
    slope,
)

LENGTH = 24
ROUNDING = torch.finfo(torch.float32).eps
"""transformers' eager attention and its norms round to fp32 also where the weights are float64: what is zero in theory
comes out as some 1e-8 here. With RoPE the same numbers are 1e-4 and more."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("probed")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_weights_are_centred_and_causal() -> None:
    diagonal, previous = (centred_weights(kind, 4) for kind in BIASES)
    assert diagonal[2].tolist() == pytest.approx([-1 / 3, -1 / 3, 2 / 3, 0])
    assert previous[2].tolist() == pytest.approx([-1 / 3, 2 / 3, -1 / 3, 0]) and previous[0].tolist() == [0] * 4
    for weights in (diagonal, previous):
        assert torch.allclose(weights.sum(1), torch.zeros(4, dtype=torch.float64))
        assert (weights.triu(1) == 0).all()


def test_bias_and_spread_by_hand() -> None:
    attention = torch.tensor([[[1.0, 0, 0], [0.25, 0.75, 0], [0.2, 0.3, 0.5]]])
    # Diagonal: row 1: 0; row 2: 0.75 - 0.5; row 3: 0.5 - 1/3.
    assert positional_bias(attention, centred_weights("diagonal", 3)).tolist() == pytest.approx([(0.25 + 1 / 6) / 3])
    uniform = torch.ones(3, 3).tril() / torch.arange(1, 4)[:, None]
    assert positional_bias(uniform[None], centred_weights("previous", 3)).tolist() == pytest.approx([0])
    states = torch.tensor([[1.0, 0], [1.0, 2.0]])  # means [1, 0] and [1, 1]; farthest from its mean by 1
    assert prefix_spread(states) == pytest.approx(1 / ((1 + 5**0.5) / 2))


@pytest.mark.parametrize("seed", [0, 1])
def test_constant_sequences_have_no_bias_without_rope_and_one_with_it(model_folder: Path, seed: int) -> None:
    """Propositions 3.2 and 3.3, at initialisation."""
    nope, rope = (load_model(model_folder, rope=kept, seed=seed) for kept in (False, True))
    assert torch.equal(nope.lm_head.weight, rope.lm_head.weight)
    without, with_it = (probe(model, constant(model, 5, LENGTH)) for model in (nope, rope))
    for layer in without:
        assert layer.prefix_spread < ROUNDING
        for numbers in (layer.bias, layer.query_grad, layer.key_grad):
            assert max(numbers.values()) < ROUNDING
    for layer in with_it:
        for numbers in (layer.bias, layer.query_grad, layer.key_grad):
            assert min(numbers.values()) > 500 * ROUNDING
    # Uniform: without positions every token attends to all before it alike.
    attention = nope.model(inputs_embeds=constant(nope, 5, LENGTH)[None], output_attentions=True).attentions
    uniform = torch.ones(LENGTH, LENGTH, dtype=torch.float64).tril() / torch.arange(1, LENGTH + 1)[:, None]
    assert all(torch.allclose(layer[0], uniform.expand(4, -1, -1), atol=ROUNDING) for layer in attention)


def test_everything_is_of_the_order_of_epsilon_without_rope(model_folder: Path) -> None:
    """Theorem 3.4: slope 1 for spread, bias and gradients in every layer; with RoPE the last two do not vanish."""
    subjects = [Subject(name=name, folder=model_folder, rope=name == "RoPE", seed=0) for name in ("NoPE", "RoPE")]
    results = run(subjects, None, length=LENGTH, seed=0)
    assert len(results.slopes) == 2 * 3 * 7
    for one in results.slopes:
        if one.subject == "NoPE" or (one.measure, one.layer) == ("prefix_spread", 0):
            assert one.value == pytest.approx(1.0, abs=0.15), one
        elif one.measure != "prefix_spread":
            assert abs(one.value) < 0.2, one


def test_the_gradient_is_that_of_the_bias(model_folder: Path) -> None:
    """Against a difference quotient along the gradient itself, of one head."""
    model = load_model(model_folder, rope=True, seed=0)
    states = embedded(model, range(LENGTH))
    weight, weights = model.model.layers[0].self_attn.q_proj.weight, centred_weights("diagonal", LENGTH)
    before = probe(model, states)[0].query_grad["diagonal"]

    def total() -> torch.Tensor:
        attention = model.model(inputs_embeds=states[None], output_attentions=True).attentions[0][0]
        return positional_bias(attention, weights).sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    assert before == pytest.approx(float(gradient.norm()) / 2)  # 4 heads: root mean square
    # The softmax's rounding to fp32 divided by a smaller step is an error of its own: 0.2% at 1e-5, 6e-6 here.
    length = 1e-3
    step = length * gradient / gradient.norm()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step
            values.append(float(total()))
            weight -= sign * step
    assert (values[0] - values[1]) / (2 * length) == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_slope_by_hand() -> None:
    assert slope([0.01, 0.1, 1.0], [3e-4, 3e-2, 3.0]) == pytest.approx(2.0)


def test_perturbation_is_relative(model_folder: Path) -> None:
    states = constant(load_model(model_folder, rope=True, seed=0), 3, 10)
    moved = (perturbed(states, 0.01, 0) - states).norm(dim=1) / states.norm(dim=1)
    assert torch.allclose(moved, torch.full((10,), 0.01, dtype=torch.float64))


def test_the_real_model_and_what_is_left_of_it_without_rope(source: Path, drope: Path, tmp_path: Path) -> None:
    subjects = [
        Subject(name="RoPE", folder=source, rope=True, seed=None),
        Subject(name="RoPE removed", folder=source, rope=False, seed=None),
        Subject(name="DroPE", folder=drope, rope=False, seed=None),
    ]
    results = run(subjects, np.arange(10, 60), length=32, seed=0)
    results.save(tmp_path)
    assert ProbeResults.model_validate_json((tmp_path / "probes.json").read_bytes()) == results
    assert len((tmp_path / "probes.csv").read_text().splitlines()) == 1 + 3 * 2 * (1 + 7 + 1)
    by_subject = {
        name: [layer for layer in results.layers if layer.subject == name and layer.sequence == "text"]
        for name in ("RoPE", "RoPE removed", "DroPE")
    }
    for removed, exported, kept in zip(
        by_subject["RoPE removed"], by_subject["DroPE"], by_subject["RoPE"], strict=True
    ):
        assert removed.bias == pytest.approx(exported.bias, abs=1e-6)
        assert removed.bias != pytest.approx(kept.bias, rel=0.05)


def test_sequences_that_cannot_be_probed(source: Path) -> None:
    subject = [Subject(name="RoPE", folder=source, rope=True, seed=None)]
    with pytest.raises(EvaluationError, match="length = 1: a sequence of at least 2 tokens has positions; give more"):
        run(subject, None, length=1, seed=0)
    with pytest.raises(EvaluationError, match="length = 8: there are 5 held-out tokens; give a shorter length"):
        run(subject, np.arange(5), length=8, seed=0)
