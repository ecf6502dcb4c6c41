"""Norms of queries and keys: put in at surgery, right in Megatron-core, calibrated by the formula."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_surgery import convert
from model_surgery.calibration import calibrate, spread
from model_surgery.checkpoint import Checkpoint
from model_surgery.config import SurgeryConfig
from model_surgery.errors import SurgeryError
from model_surgery.layout import Layout, read_rank, read_sources
from model_surgery.qk_norm import initial_norms, with_qk_norm
from model_surgery.shape import ModelShape, read_shape, shape_from_config, source_position_embedding
from model_surgery.verification.reference import logits_of, source_logits, whole_model
from model_surgery.verification.tokens import PASSAGE

NORM = "model.layers.1.self_attn.{}_norm.weight"


def as_published(folder: Path, attention_type: str, widths: dict[str, int]) -> None:
    """Makes a Llama a published DroPE model; those hold both norms, also where one is not used."""
    path = folder / "model.safetensors"
    names = {part: [f"model.layers.{layer}.self_attn.{part}_norm.weight" for layer in (0, 1)] for part in widths}
    norms = {name: torch.rand(widths[part]) for part in widths for name in names[part]}
    save_file(load_file(path) | norms, path, metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(raw | {"model_type": "llama_drope", "attention_type": attention_type})
    )


def test_a_norm_adds_weights_and_a_second_one_is_refused(make_shape: Callable[..., ModelShape]) -> None:
    plain = make_shape()
    assert with_qk_norm(plain, "none", "m") == plain
    full, per_head = (with_qk_norm(plain, kind, "m") for kind in ("full", "per_head"))
    assert full.parameters - plain.parameters == 2 * (4 + 2) * 8
    assert per_head.parameters - plain.parameters == 2 * 2 * 8
    norms = initial_norms(plain, full)
    assert {name: len(weight) for name, weight in norms.items() if ".1." in name} == {
        NORM.format("q"): 32,
        NORM.format("k"): 16,
    }
    assert all((weight == 1).all() for weight in norms.values())
    assert initial_norms(full, full) == {}
    with pytest.raises(
        SurgeryError, match=r"surgery\.qk_norm = 'full': m has norms already \(q: per_head, k: per_head\)"
    ):
        with_qk_norm(per_head, "full", "m")


def test_an_init_without_a_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="qk_norm_init = 'calibrated' is for a norm that is put in; set qk_norm too"):
        SurgeryConfig(qk_norm_init="calibrated")


def test_calibration_without_rows_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = SurgeryConfig(qk_norm="full", qk_norm_init="calibrated")
    with pytest.raises(SurgeryError, match="needs training rows to measure on"):
        convert.run(config, source=tiny_model, out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
def test_a_full_width_norm_is_cut_with_its_heads(tensor_parallel: int, odd_model: Path, tmp_path: Path) -> None:
    config, shape = SurgeryConfig(tensor_parallel=tensor_parallel, qk_norm="full"), read_shape(odd_model)
    norms = {name: torch.rand_like(one) for name, one in initial_norms(shape, with_qk_norm(shape, "full", "m")).items()}
    layout = convert.convert(config, source=odd_model, out_dir=tmp_path, norms=norms)
    assert layout.inserted_norms == "ones"
    for part, heads in (
        ("q", layout.shape.padded(tensor_parallel).heads),
        ("k", layout.shape.padded(tensor_parallel).kv_heads),
    ):
        name = f"decoder.layers.1.self_attention.{part}_layernorm.weight"
        slices = [read_rank(tmp_path, layout, rank)[name] for rank in range(tensor_parallel)]
        assert {len(piece) for piece in slices} == {heads // tensor_parallel * 8}
        whole, expected = torch.cat(slices), norms[NORM.format(part)]
        assert torch.equal(whole[: len(expected)], expected)
        assert not whole[len(expected) :].any()
        entry = next(entry for entry in layout.tensors if entry.target == name)
        assert torch.equal(read_sources(tmp_path, layout, entry)[NORM.format(part)], expected)


@pytest.mark.usefixtures("megatron_of_one")
@pytest.mark.parametrize("kind", ["full", "per_head"])
@pytest.mark.parametrize(("q", "k"), [(True, True), (True, False), (False, True)])
def test_megatron_norms_as_the_formula_says(
    kind: str, q: bool, k: bool, tiny_model: Path, make_shape: Callable[..., ModelShape]
) -> None:
    """By Megatron-core's own get_query_key_value_tensors, against the formula written down."""
    from model_surgery.megatron.model import build_model

    shape = make_shape(q_norm=kind if q else "none", k_norm=kind if k else "none")
    attention = build_model(shape, position_embedding="none").decoder.layers[0].self_attention
    plain = build_model(make_shape(), position_embedding="none").decoder.layers[0].self_attention
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.uniform_(-1, 1)
        plain.load_state_dict({n: p for n, p in attention.state_dict().items() if "_layernorm" not in n})
    hidden = torch.randn(5, 2, 32)
    got = attention.get_query_key_value_tensors(hidden)
    for part, normed, tensor in zip("qkv", got, plain.get_query_key_value_tensors(hidden), strict=True):
        expected = tensor
        if {"q": q, "k": k, "v": False}[part]:
            weight = getattr(attention, f"{part}_layernorm").weight
            axes = (2, 3) if kind == "full" else (3,)
            mean = tensor.square().mean(axes, keepdim=True)
            expected = tensor / (mean + 1e-5).sqrt() * weight.view(-1, 8)
        torch.testing.assert_close(normed, expected)


def test_the_reference_norms_are_torchs_own(tiny_model: Path) -> None:
    """The hooks of the reference model against torch.nn.RMSNorm modules in the projections' place."""
    shape = read_shape(tiny_model)
    for kind in ("full", "per_head"):
        norms = {n: torch.rand_like(w) for n, w in initial_norms(shape, with_qk_norm(shape, kind, "m")).items()}
        model = whole_model(tiny_model, shape, identity_rotation=True)
        for number, layer in enumerate(model.model.layers):
            for part in "qk":
                weight = norms[f"model.layers.{number}.self_attn.{part}_norm.weight"]
                norm = torch.nn.RMSNorm(len(weight), eps=shape.norm_eps)
                norm.weight.data = weight
                attention, name = layer.self_attn, f"{part}_proj"
                heads = torch.nn.Unflatten(-1, (-1, len(weight)))
                setattr(
                    attention, name, torch.nn.Sequential(getattr(attention, name), heads, norm, torch.nn.Flatten(-2))
                )
        tokens = torch.randint(96, (2, 32), generator=torch.Generator().manual_seed(1))
        expected = logits_of(model, tokens)
        got = source_logits(tiny_model, tokens, identity_rotation=True, norms=norms)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_spread_is_the_standard_deviation_over_the_keys_a_query_sees(make_shape: Callable[..., ModelShape]) -> None:
    shape, length = make_shape(), 7
    queries, keys = torch.randn(2, length, 32), torch.randn(2, length, 16)
    variances = []
    for row in range(2):
        for head in range(4):
            q = queries[row, :, head * 8 : head * 8 + 8]
            k = keys[row, :, head // 2 * 8 : head // 2 * 8 + 8]
            logits = q @ k.T / 8**0.5
            variances += [logits[i, : i + 1].var(unbiased=False) for i in range(length)]
    torch.testing.assert_close(spread(queries, keys, shape), torch.stack(variances).mean().sqrt())


@pytest.mark.parametrize("kind", ["full", "per_head"])
@pytest.mark.parametrize(
    ("name", "close"), [("small_llama", 1e-4), ("smollm2_two_layers", 2**-7)], ids=["fp32", "bf16"]
)
def test_a_calibrated_norm_keeps_the_scale_of_the_logits(
    name: str, close: float, kind: str, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoTokenizer

    source = request.getfixturevalue(name)
    ids = AutoTokenizer.from_pretrained(source)(PASSAGE.read_text(encoding="utf-8")).input_ids
    rows = torch.tensor(ids[: 2 * 128]).view(2, 128)
    shape = read_shape(source)
    result = calibrate(source, shape, with_qk_norm(shape, kind, "m"), rows)
    # The losses are those of the whole model in transformers.
    model = whole_model(source, shape, identity_rotation=True)
    losses = torch.nn.functional.cross_entropy(logits_of(model, rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    assert result.loss_without_norm == pytest.approx(losses.item(), abs=1e-5)
    seen: dict[tuple[int, str], torch.Tensor] = {}
    for norms, expected in ((result.norms, result.loss_calibrated), (None, result.loss_with_ones)):
        norms = norms or {name: torch.ones_like(weight) for name, weight in result.norms.items()}
        model = whole_model(source, shape, identity_rotation=True, norms=norms)
        logits = logits_of(model, rows)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        assert expected == pytest.approx(loss.item(), abs=1e-5)
    # In the first layer, whose input no norm has changed, the spread is the one without the norm.
    spreads = []
    for norms in ({}, result.norms):
        model = whole_model(source, shape, identity_rotation=True, norms=norms)
        for part in "qk":
            projection = getattr(model.model.layers[0].self_attn, f"{part}_proj")
            projection.register_forward_hook(lambda m, i, output, part=part: seen.__setitem__((0, part), output))
        logits_of(model, rows)
        spreads.append(spread(seen[0, "q"], seen[0, "k"], shape).item())
    assert spreads[1] == pytest.approx(spreads[0], rel=close)  # the norms have the dtype of the source
    # Which is why it is nearer to the model without norm than a norm of ones is: not where layers are missing.
    assert name == "smollm2_two_layers" or abs(result.loss_calibrated - result.loss_without_norm) < abs(
        result.loss_with_ones - result.loss_without_norm
    )


def test_a_norm_of_the_source_is_kept(tiny_model: Path, write_model: Callable[..., Path], tmp_path: Path) -> None:
    """A checkpoint in the published DroPE format, in the names and the config that it has."""
    source = tmp_path / "drope"
    write_model(source)
    norms = {
        f"model.layers.{n}.self_attn.{p}_norm.weight": torch.rand(w) for n in (0, 1) for p, w in (("q", 32), ("k", 16))
    }
    save_file(load_file(source / "model.safetensors") | norms, source / "model.safetensors")
    raw = json.loads((source / "config.json").read_text())
    changes = {
        "model_type": "llama_drope",
        "architectures": ["DroPELlamaForCausalLM"],
        "attention_type": "qk_norm_nope",
    }
    (source / "config.json").write_text(json.dumps(raw | changes))
    shape = read_shape(source)
    assert (shape.model_type, shape.q_norm, shape.k_norm) == ("llama", "full", "full")
    layout = convert.convert(SurgeryConfig(tensor_parallel=2), source=source, out_dir=tmp_path / "layout")
    assert layout.source_position_embedding == "none"
    assert layout.inserted_norms is None
    with Checkpoint(source) as checkpoint:
        for entry in layout.tensors:
            for name, tensor in read_sources(tmp_path / "layout", layout, entry).items():
                assert torch.equal(tensor, checkpoint.tensor(name))
    with pytest.raises(SurgeryError, match="has norms already"):
        convert.check(SurgeryConfig(qk_norm="full"), source)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attention_type",
    ["nope", "qk_norm_nope", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("q_norm_nope", "k_norm_nope"))],
)
def test_published_models_pass_verification(attention_type: str, odd_model: Path, tmp_path: Path) -> None:
    """Each attention type at TP 2 with padded heads, in real processes."""
    source = Path(shutil.copytree(odd_model, tmp_path / "drope"))
    if "norm" in attention_type:  # the published models hold both norms, also where one is not used
        widths = {"q": 48, "k": 24}
        norms = {
            f"model.layers.{n}.self_attn.{p}_norm.weight": torch.rand(w) for n in (0, 1) for p, w in widths.items()
        }
        save_file(
            load_file(source / "model.safetensors") | norms, source / "model.safetensors", metadata={"format": "pt"}
        )
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps(raw | {"model_type": "llama_drope", "attention_type": attention_type})
    )
    made = convert.run(SurgeryConfig(tensor_parallel=2), source=source, out_dir=tmp_path / "layout")
    assert made.verification.ok
    assert len(made.verification.comparisons) == 2
    assert Layout.load(tmp_path / "layout").shape.q_norm == ("full" if "q" in attention_type.split("_")[0] else "none")


def test_a_softmax_scale_of_the_source_is_refused(tiny_model: Path) -> None:
    raw = json.loads((tiny_model / "config.json").read_text()) | {"model_type": "llama_drope", "softmax_scale": 0.4}
    with pytest.raises(SurgeryError, match=r"softmax_scale = 0\.4: a scale for one context length"):
        shape_from_config(raw, "config.json")
    with pytest.raises(SurgeryError, match="attention_type = 'alibi' is not known; known: nope, qk_norm_nope"):
        shape_from_config(raw | {"softmax_scale": None, "attention_type": "alibi"}, "config.json")


def test_our_own_export_is_a_source(tiny_model: Path, tmp_path: Path) -> None:
    raw = json.loads((tiny_model / "config.json").read_text())
    changes = {"model_type": "smollm3", "no_rope_layers": [0, 0]}
    assert shape_from_config(raw | changes, "config.json") == read_shape(tiny_model)
    assert source_position_embedding(raw | changes) == "none"
    with pytest.raises(SurgeryError, match="with RoPE in some layers is not supported"):
        shape_from_config(raw | changes | {"no_rope_layers": [1, 0]}, "config.json")
