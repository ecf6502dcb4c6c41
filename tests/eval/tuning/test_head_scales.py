"""Scales of single heads: hooks against attention written out, their gradient against differences, their training."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.config import EvaluationConfig
from eval.errors import EvaluationError
from eval.held_out import open_prefixes, read_tokens
from eval.models import Models
from eval.tasks.forward import token_losses
from eval.tuning.head_scales import (
    TrainedHeads,
    frozen_training,
    mean_loss,
    scaled_heads,
    scaled_parts,
    train_heads,
)
from eval.tuning.softmax_scale import Tuning, load_model, prepare_tuning
from eval.variants.loading import load_variant, scale_queries
from model_surgery.rotation import IDENTITY_ROTATION
from model_surgery.transformers_registration import register_drope

C = 512
TOKENS = torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=["llama", "biased", "full_norm"])
def folder(request: pytest.FixtureRequest, write_model: Callable[..., Path], tmp_path: Path) -> Path:
    """4 query heads on 2 KV heads, 2 layers: no norm, biases, a norm over all heads."""
    register_drope()
    if request.param == "full_norm":
        return write_model(tmp_path / "full", "llama_drope", attention_type="qk_norm_nope")
    biased = request.param == "biased"
    return write_model(tmp_path / "none", "smollm3", no_rope_layers=[0, 0], attention_bias=biased, pad_token_id=0)


def load(folder: Path):
    return load_variant("drope", folder, 1, context=32)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def scales_of(seed: int = 3) -> torch.Tensor:
    return 0.5 + 2 * torch.rand(2, 4, generator=torch.Generator().manual_seed(seed))


def test_ones_change_nothing_and_no_hook_stays(folder: Path) -> None:
    model = load(folder)
    plain = logits(model)
    with scaled_heads(model, torch.ones(2, 4)):
        assert torch.equal(logits(model), plain)
    with scaled_heads(model, scales_of()):
        assert (logits(model) - plain).abs().max() > 0.01
    assert torch.equal(logits(model), plain)


def test_the_same_scale_in_every_head_is_the_softmax_scale(folder: Path) -> None:
    model, other = load(folder), load(folder)
    scale_queries(other, 1.37)
    with scaled_heads(model, torch.full((2, 4), 1.37)):
        torch.testing.assert_close(logits(model), logits(other), rtol=0, atol=1e-5)


def test_logits_and_gradient_are_those_of_scales_in_the_attention_logits(folder: Path) -> None:
    """Against transformers' own loss over an attention function that scales the logits of each head by itself."""
    from transformers import AttentionInterface

    expected, scales = (scales_of().requires_grad_() for _ in range(2))

    def by_head(module, query, key, value, attention_mask, scaling, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(-1, -2) * scaling * expected[module.layer_idx][None, :, None, None]
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    AttentionInterface.register("by_head", by_head)
    model, other = load(folder), load(folder)
    other.config._attn_implementation = "by_head"
    with scaled_heads(model, scales):
        torch.testing.assert_close(logits(model), logits(other), rtol=0, atol=1e-5)
        loss = other(TOKENS, labels=TOKENS).loss
        loss.backward()
        with frozen_training(model):
            mean = mean_loss(model, TOKENS.numpy())
            mean.backward()
    assert mean.item() == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(scales.grad, expected.grad, rtol=1e-3, atol=1e-6)
    assert expected.grad.abs().min() > 1e-5
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_norm_over_each_head_is_refused_in_one_line(write_model: Callable[..., Path], tmp_path: Path) -> None:
    rope = {"rope_theta": 1e4, **IDENTITY_ROTATION}
    model = load(write_model(tmp_path / "qwen3", "qwen3", head_dim=8, rope_parameters=rope))
    with pytest.raises(EvaluationError, match=r"all heads of a layer share.*leave --per-head out") as caught:
        scaled_parts(model)
    assert "\n" not in str(caught.value)


def tuning_of(models: Models, tokens: int = 4096, **settings: object) -> Tuning:
    config = EvaluationConfig(**{"context_factors": (1, 2), "loss": {"tokens": 2048}, "batch_tokens": 2048} | settings)
    return prepare_tuning(config, models, tokens=tokens, samples=2, head_length=2 * C)


def test_trained_on_text_and_checked_on_what_follows_it(trained_models: Models, tmp_path: Path) -> None:
    tuning = tuning_of(trained_models)
    model = load_model(tuning, trained_models, 2)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = train_heads(tuning, model, factor=2, start=0.9, steps=6, learning_rate=0.1)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not model.training and not model.is_gradient_checkpointing
    assert np.shape(trained.scales) == (model.config.num_hidden_layers, 8) and (trained.rows, trained.length) == (
        4,
        2 * C,
    )
    assert trained.losses[-1] < trained.losses[0]
    text = read_tokens(open_prefixes(trained_models.validation), 10**6)[len(tuning.inputs.tokens) :]
    first = np.stack([text[start : start + 1025] for start in (0, 1024)])  # 2048 tokens at a time
    scale_queries(model, 0.9)
    assert trained.losses[0] == pytest.approx(token_losses(model, first, 2048).mean(), abs=1e-5)
    (check,) = trained.checks
    unseen = np.stack([text[start : start + 1025] for start in range(4097, 4097 + 4096, 1024)])
    assert check.on == "text" and check.rows == 4
    assert check.before == pytest.approx(token_losses(model, unseen, 2048).mean(), abs=1e-5)
    plain = load_model(tuning, trained_models, 2)
    with scaled_heads(plain, torch.tensor(trained.scales)):
        assert check.after == pytest.approx(token_losses(plain, unseen, 2048).mean(), abs=1e-5)
    assert check.after < check.before
    trained.save(tmp_path)
    assert TrainedHeads.model_validate(json.loads((tmp_path / "heads.json").read_text())) == trained


def test_scarce_text_is_shared_and_what_has_no_row_left_is_not_checked(models: Models) -> None:
    available = len(read_tokens(open_prefixes(models.validation), 10**6))
    scarce = tuning_of(models, tokens=10**6, loss={"tokens": available - 2400})
    assert (len(scarce.tokens), len(scarce.check)) == (1199, 1200)
    assert len(scarce.unseen(2 * C).rows) == 1
    scarcer = tuning_of(models, tokens=10**6, loss={"tokens": available - 1500})
    assert len(scarcer.tokens) == 2 * C + 1 and scarcer.unseen(2 * C) is None
    model = load_model(scarcer, models, 2)
    assert train_heads(scarcer, model, factor=2, start=1.0, steps=1, learning_rate=0.1).checks == ()
