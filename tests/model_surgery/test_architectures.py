"""The declarative map against the real transformers classes."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from model_surgery.architectures import rules, source_shapes
from model_surgery.known_models import KNOWN_MODELS
from model_surgery.shape import ModelShape

QWEN2 = {"model_type": "qwen2", "qkv_bias": True}


def real_model(shape: ModelShape) -> PreTrainedModel:
    """transformers' model of this shape, without memory for its weights."""
    config = AutoConfig.for_model(
        shape.model_type,
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("sizes", [{"tied": False}, {"tied": True}, {"kv_heads": 4, "head_dim": 16}, QWEN2])
def test_source_shapes_and_parameters_are_those_of_transformers(
    sizes: dict[str, object], make_shape: Callable[..., ModelShape]
) -> None:
    shape = make_shape(**sizes)
    model = real_model(shape)
    # parameters() names a tied head once, as a checkpoint does.
    assert source_shapes(shape) == {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())


def test_every_source_tensor_is_used_once(make_shape: Callable[..., ModelShape]) -> None:
    used = [name for rule in rules(make_shape()) for name in rule.sources]
    assert len(used) == len(set(used))
    targets = [rule.target for rule in rules(make_shape())]
    assert len(targets) == len(set(targets))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("HuggingFaceTB/SmolLM-360M", 361_821_120),
        ("HuggingFaceTB/SmolLM-1.7B", 1_711_376_384),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("Qwen/Qwen2-0.5B", 494_032_768),
    ],
)
def test_known_models_have_their_published_number_of_weights(name: str, published: int) -> None:
    shape = KNOWN_MODELS[name]
    assert shape.parameters == published
    assert sum(weight.numel() for weight in real_model(shape).parameters()) == published
