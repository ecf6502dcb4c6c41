"""Which configs are read and which are refused, each with one line that names the value."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig

from model_surgery.errors import SurgeryError
from model_surgery.known_models import KNOWN_MODELS
from model_surgery.shape import ModelShape, read_shape, shape_from_config


@pytest.fixture
def config(tiny_model: Path) -> dict[str, object]:
    return json.loads((tiny_model / "config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type = 'mistral'"),
        ({"model_type": None}, "model_type = None"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window = True"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "4 query heads cannot be grouped over 3 KV heads"),
        ({"num_attention_heads": "many"}, "num_attention_heads = 'many'"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads = 0"),
        ({"num_hidden_layers": "two"}, "layers = 'two': Input should be a valid integer"),
        ({"intermediate_size": -64}, "ffn = -64: Input should be greater than 0"),
        ({"rms_norm_eps": 0}, "norm_eps = 0"),
    ],
)
def test_what_cannot_be_operated_on_is_refused(
    changes: dict[str, object], message: str, config: dict[str, object]
) -> None:
    with pytest.raises(SurgeryError) as refused:
        shape_from_config(config | changes, "config.json")
    assert message in str(refused.value)
    assert str(refused.value).startswith("config.json: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "key",
    [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ],
)
def test_a_missing_key_is_named(key: str, config: dict[str, object]) -> None:
    expected = {name: value for name, value in config.items() if name not in (key, "head_dim")}
    with pytest.raises(SurgeryError, match=f"{key} is missing"):
        shape_from_config(expected, "config.json")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_a_file_that_is_no_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SurgeryError, match=r"config\.json: (not valid JSON|holds a JSON list)"):
        read_shape(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"config\.json: no such file"):
        read_shape(tmp_path)


def test_the_config_is_read_as_transformers_reads_it(tiny_model: Path, smollm2: Path) -> None:
    for folder in (tiny_model, smollm2):
        shape, real = read_shape(folder), AutoConfig.from_pretrained(folder)
        assert shape.norm_eps == real.rms_norm_eps
        assert shape.rope_theta == real.rope_parameters["rope_theta"]
        assert shape.head_dim == real.head_dim
        assert (shape.kv_heads, shape.tied) == (real.num_key_value_heads, real.tie_word_embeddings)
        assert shape.context == real.max_position_embeddings


def test_defaults_are_those_of_transformers(config: dict[str, object]) -> None:
    dropped = ("rms_norm_eps", "rope_parameters", "num_key_value_heads", "tie_word_embeddings", "head_dim")
    little = {name: value for name, value in config.items() if name not in dropped}
    shape, real = shape_from_config(little, "config.json"), AutoConfig.for_model(**little)
    assert (shape.norm_eps, shape.rope_theta) == (real.rms_norm_eps, real.rope_parameters["rope_theta"])
    assert (shape.kv_heads, shape.head_dim) == (real.num_key_value_heads, real.head_dim)
    assert shape.tied == real.tie_word_embeddings


def test_a_cut_that_does_not_divide_is_padded(make_shape: Callable[..., ModelShape]) -> None:
    smollm = KNOWN_MODELS["HuggingFaceTB/SmolLM-360M"]
    padded = smollm.padded(2)
    assert (padded.heads, padded.kv_heads, padded.ffn, padded.vocab) == (18, 6, 2560, 49152)
    assert smollm.padded(5).vocab == 49155
    assert smollm.padded(1) == smollm
    assert make_shape(kv_heads=2).padded(4).heads == 8  # more ranks than KV heads: whole groups of zeros
    llama = KNOWN_MODELS["meta-llama/Llama-2-7b-hf"]
    assert llama.padded(32) == llama


def test_more_ranks_than_query_heads_are_refused() -> None:
    smollm = KNOWN_MODELS["HuggingFaceTB/SmolLM-360M"]
    with pytest.raises(
        SurgeryError, match=r"^surgery\.tensor_parallel = 16: SmolLM-360M has 15 query heads; use 15 or"
    ):
        smollm.check_tensor_parallel(16, "SmolLM-360M")
    smollm.check_tensor_parallel(15)
