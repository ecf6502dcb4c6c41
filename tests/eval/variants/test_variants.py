"""Each variant against its paper's formula, written out here, and against transformers' own result."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from eval.config import OF_THE_SOURCE
from eval.errors import EvaluationError
from eval.variants.loading import load_variant
from eval.variants.rope_scaling import canonical, ntk_theta, variant_config

C, THETA, HEAD_DIM = 512, 10000.0, 16


def inverse_frequencies(source: Path, variant: str, factor: int) -> torch.Tensor:
    return load_variant(variant, source, factor, context=C).model.rotary_emb.inv_freq


def plain(theta: float = THETA) -> torch.Tensor:
    """RoPE: theta^(-2i/d)."""
    return torch.tensor([theta ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)])


def test_rope_is_the_source(source: Path) -> None:
    torch.testing.assert_close(inverse_frequencies(source, "rope", 8), plain())


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_pi_divides_positions(source: Path, factor: int) -> None:
    torch.testing.assert_close(inverse_frequencies(source, "pi", factor), plain() / factor)


@pytest.mark.parametrize("factor", [2, 8])
def test_ntk_keeps_the_fastest_and_divides_the_slowest(source: Path, factor: int) -> None:
    frequencies = inverse_frequencies(source, "ntk", factor)
    torch.testing.assert_close(frequencies, plain(THETA * factor ** (HEAD_DIM / (HEAD_DIM - 2))))
    assert frequencies[0] == 1
    torch.testing.assert_close(frequencies[-1], plain()[-1] / factor)


def test_ntk_theta_by_hand() -> None:
    assert ntk_theta(10000.0, 4, 3.0) == pytest.approx(90000.0)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_yarn_interpolates_by_wavelength(source: Path, factor: int) -> None:
    """YaRN, section 3.2: below 1 turn in C tokens (beta_slow) interpolate, above 32 (beta_fast) do not, a ramp between.

    As in the paper's code the ramp runs over the dimension, its ends rounded outwards.
    """
    turns_to_dimension = [HEAD_DIM * math.log(C / (turns * 2 * math.pi)) / (2 * math.log(THETA)) for turns in (32, 1)]
    low, high = max(math.floor(turns_to_dimension[0]), 0), min(math.ceil(turns_to_dimension[1]), HEAD_DIM - 1)
    expected = []
    for i, frequency in enumerate(plain().tolist()):
        gamma = 1 - min(max((i - low) / (high - low), 0), 1)
        expected.append((1 - gamma) * frequency / factor + gamma * frequency)
    torch.testing.assert_close(inverse_frequencies(source, "yarn", factor), torch.tensor(expected))


@pytest.mark.parametrize("factor", [2, 8])
def test_yarn_attention_factor(source: Path, factor: int) -> None:
    """YaRN, equation 22: sqrt(1/t) = 0.1 ln s + 1, on queries and keys."""
    model = load_variant("yarn", source, factor, context=C)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(factor) + 1)


@pytest.mark.parametrize(("factor", "length"), [(2, 1024), (4, 1500), (4, 2048)])
def test_dynamic_ntk_goes_by_the_length_read(source: Path, factor: int, length: int) -> None:
    """NTK's base with s l / C - (s - 1) for s; up to C tokens it is the source."""
    model, tokens = load_variant("dynamic_ntk", source, factor, context=C), torch.arange(length)[None] % 2048
    with torch.inference_mode():
        short = model(tokens[:, :C]).logits
        assert torch.equal(short, load_variant("rope", source, 1, context=C)(tokens[:, :C]).logits)
        model(tokens)
    expected = plain(ntk_theta(THETA, HEAD_DIM, factor * length / C - (factor - 1)))
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("factor", [2, 8])
def test_longrope2_divides_each_frequency_by_its_factor(source: Path, factor: int) -> None:
    factors = tuple(1.0 + 0.5 * factor * i for i in range(HEAD_DIM // 2))
    model = load_variant("longrope2", source, factor, context=C, factors=factors)
    tokens = torch.arange(C + 1)[None] % 2048
    with torch.inference_mode():
        model(tokens)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, plain() / torch.tensor(factors))
    # LongRoPE (arXiv:2402.13753), equation 2 of its code: sqrt(1 + ln s / ln C) on queries and keys.
    assert model.model.rotary_emb.attention_scaling == pytest.approx((1 + math.log(factor) / math.log(C)) ** 0.5)


def test_longrope2_takes_a_factor_for_every_pair(source: Path) -> None:
    with pytest.raises(EvaluationError, match="longrope2: 3 factors for 8 pairs"):
        load_variant("longrope2", source, 2, context=C, factors=(1.0, 1.0, 2.0))


@pytest.mark.parametrize("variant", ["rope", "pi", "ntk", "dynamic_ntk", "yarn"])
def test_logits_equal_transformers_own(source: Path, variant: str) -> None:
    factor = 4
    asked = {
        "rope": {"rope_type": "default", "rope_theta": THETA},
        "pi": {"rope_type": "linear", "rope_theta": THETA, "factor": 4.0},
        "ntk": {"rope_type": "default", "rope_theta": THETA * 4 ** (16 / 14)},
        "dynamic_ntk": {"rope_type": "dynamic", "rope_theta": THETA, "factor": 4.0},
        "yarn": {"rope_type": "yarn", "rope_theta": THETA, "factor": 4.0, "original_max_position_embeddings": C},
    }[variant]
    positions = C if variant == "dynamic_ntk" else 4 * C
    theirs = LlamaForCausalLM.from_pretrained(
        source, rope_parameters=asked, max_position_embeddings=positions, dtype=torch.float32
    )
    ours = load_variant(variant, source, factor, context=C)
    tokens = torch.randint(0, 2048, (1, 4 * C), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_source_config_is_left_as_it_is_and_positions_are_raised() -> None:
    config = LlamaConfig(max_position_embeddings=C)
    before = config.to_dict()
    assert variant_config("yarn", config, 8, C).max_position_embeddings == 8 * C
    assert config.to_dict() == before


def test_drope_is_blind_to_the_order_of_past_tokens_in_one_layer(source: Path, drope: Path) -> None:
    """Without positions the last token sees a set: in the first layer a permutation of the past changes nothing."""
    tokens = torch.arange(10, 74)[None]
    shuffled = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], dim=1)
    difference = {}
    for variant, folder in (("drope", drope), ("rope", source)):
        model = load_variant(variant, folder, 2, context=C)
        with torch.inference_mode():
            a, b = (model(ids, output_hidden_states=True).hidden_states[1][0, -1] for ids in (tokens, shuffled))
        difference[variant] = ((a - b).abs().max() / a.abs().max()).item()
    assert difference["drope"] < 1e-5 < 1e-2 < difference["rope"]


def test_softmax_scale_is_in_the_attention_logits(drope: Path) -> None:
    """beta on q_proj equals stock attention with its own 1/sqrt(d) multiplied by beta."""
    c, factor = 0.4, 4
    beta = 1 + c * math.log(factor)
    scaled = load_variant("drope_scaled", drope, factor, context=C, softmax_scale_c=c)
    reference = AutoModelForCausalLM.from_pretrained(drope, dtype=torch.float32, attn_implementation="sdpa")
    for layer in reference.model.layers:
        layer.self_attn.scaling *= beta
    tokens = torch.randint(0, 2048, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(scaled(tokens).logits, reference(tokens).logits, atol=1e-4, rtol=1e-5)
        assert not torch.allclose(scaled(tokens).logits, load_variant("drope", drope, 1, context=C)(tokens).logits)


def test_scale_reaches_the_bias(tmp_path: Path) -> None:
    from eval.variants.loading import scale_queries

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_bias=True,
    )
    model = LlamaForCausalLM(config)
    projection = model.model.layers[0].self_attn.q_proj
    torch.nn.init.ones_(projection.bias)
    scale_queries(model, 1.5)
    assert torch.equal(projection.bias.detach(), torch.full((8,), 1.5))


@pytest.mark.parametrize("norms", ["qk_norm_nope", "q_norm_nope", "k_norm_nope", "per_head"])
@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_the_factor_survives_norms_of_queries_and_keys(family: str, norms: str) -> None:
    """Before a norm of the queries it would be taken out again: it must be in the attention logits all the same."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from eval.variants.loading import scale_queries
    from model_surgery.hub_code import configuration_drope, modeling_drope

    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.5}
    torch.manual_seed(0)
    if norms == "per_head":
        model = Qwen3ForCausalLM(Qwen3Config(**shape, attention_bias=family == "Qwen2")).eval()
    else:
        config = getattr(configuration_drope, f"DroPE{family}Config")(**shape, attention_type=norms)
        model = getattr(modeling_drope, f"DroPE{family}ForCausalLM")(config).eval()
    tokens = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = model(tokens).logits
        for layer in model.model.layers:
            layer.self_attn.scaling *= 2
        expected = model(tokens).logits
        for layer in model.model.layers:
            layer.self_attn.scaling /= 2
        scale_queries(model, 2.0)  # a power of 2, which rounds nothing
        assert torch.equal(model(tokens).logits, expected)
    assert (expected - plain).abs().max() > 1e-3


def test_canonical() -> None:
    assert {canonical(variant, 1, 0.1) for variant in OF_THE_SOURCE} == {"rope"}
    assert [canonical(variant, 2, 0.1) for variant in ("rope", "pi", "drope_scaled")] == ["rope", "pi", "drope_scaled"]
    assert canonical("drope_scaled", 1, 0.1) == canonical("drope_scaled", 4, 0.0) == "drope"


@pytest.mark.parametrize("variant", ["pi", "ntk", "yarn"])
def test_every_scaling_at_1x_is_rope(source: Path, variant: str) -> None:
    torch.testing.assert_close(inverse_frequencies(source, variant, 1), plain())
    assert load_variant(variant, source, 1, context=C).model.rotary_emb.attention_scaling == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r": 1 missing keys, the first model\.layers\.1\.mlp\.up_proj\.weight"),
        ("extra", r": 1 unexpected keys, the first model\.layers\.9\.mlp\.up_proj\.weight"),
    ],
)
def test_wrong_tensors_are_refused(source: Path, tmp_path: Path, change: str, message: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    if change == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    else:
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(EvaluationError, match=message):
        load_variant("rope", tmp_path, 1, context=C)


def test_misshapen_tensor_is_refused(source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(64)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(EvaluationError, match=r"the weights do not load: \w"):
        load_variant("rope", tmp_path, 1, context=C)


def test_weights_in_a_file_of_torch_save(source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from eval.models import model_digest

    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # as old transformers versions saved it
    torch.save(load_file(source / "model.safetensors") | buffer, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    expected = load_variant("rope", source, 1, context=C).state_dict()
    got = load_variant("rope", tmp_path, 1, context=C).state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    before = model_digest(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert model_digest(tmp_path) != before


class _Code:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code in a weight file was run')",)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_weight_file_is_not_run(as_zip: bool, source: Path, tmp_path: Path) -> None:
    torch.save({"a": _Code()}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=as_zip)
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(EvaluationError, match="hold more than tensors, maybe code; nothing is loaded"):
        load_variant("rope", tmp_path, 1, context=C)


def test_an_empty_weight_file_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(EvaluationError, match=r"the weights do not load: \w"):
        load_variant("rope", tmp_path, 1, context=C)
