"""Surgery with its own verification in real Megatron-core processes: right layouts pass, planted bugs do not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_surgery import convert, partition
from model_surgery.architectures import Join
from model_surgery.checkpoint import Checkpoint
from model_surgery.config import SurgeryConfig
from model_surgery.errors import SurgeryError
from model_surgery.layout import LAYOUT_FILE, Layout, damaged_tensors, read_sources
from model_surgery.shape import ModelShape, read_shape
from model_surgery.verification.tokens import verification_tokens
from model_surgery.verification.verify import (
    NO_PE,
    QK_NORM,
    ROPE,
    Comparison,
    Verification,
    changed_tensors,
    compare,
    config_differences,
    layout_logits,
    planned_runs,
    reference_logits,
    sampled_layers,
)

HEAD_DIM = 8
Parts = tuple[Tensor, ...]


def permuted_head_dimensions(parts: Parts) -> Parts:
    """q and k rows reversed within every head: the same function without RoPE, another one with it."""
    q, k, v = parts
    q, k = (part.reshape(-1, HEAD_DIM, *part.shape[1:]).flip(1).reshape(part.shape) for part in (q, k))
    return q, k, v


def permuted_query_heads(parts: Parts) -> Parts:
    """The first two query heads of the first KV group change places; their output columns do not."""
    q, k, v = parts
    heads = q.reshape(-1, HEAD_DIM, *q.shape[1:])
    order = [1, 0, *range(2, len(heads))]
    return heads[order].reshape(q.shape), k, v


def interleaved_query_heads(parts: Parts) -> Parts:
    """Query heads dealt out to the KV groups in turn instead of in blocks."""
    q, k, v = parts
    groups = len(k) // HEAD_DIM
    dealt = q.reshape(groups, -1, HEAD_DIM, *q.shape[1:]).transpose(0, 1)
    return dealt.reshape(q.shape), k, v


def shifted_kv_group(parts: Parts) -> Parts:
    q, k, v = parts
    return q, k.roll(HEAD_DIM, 0), v.roll(HEAD_DIM, 0)


def transposed(parts: Parts) -> Parts:
    return tuple(part.T.contiguous() if part.shape[0] == part.shape[1] else part for part in parts)


INVISIBLE_WITHOUT_ROPE = "head dimensions of q and k permuted"
PLANTED: dict[str, tuple[str, Join, Callable[[Parts], Parts]]] = {
    INVISIBLE_WITHOUT_ROPE: ("weight", Join.QKV, permuted_head_dimensions),
    "two query heads permuted": ("weight", Join.QKV, permuted_query_heads),
    "query heads interleaved": ("weight", Join.QKV, interleaved_query_heads),
    "one KV group shifted": ("weight", Join.QKV, shifted_kv_group),
    "k and v swapped": ("weight", Join.QKV, lambda parts: (parts[0], parts[2], parts[1])),
    "gate and up swapped": ("weight", Join.GATE_UP, lambda parts: parts[::-1]),
    "output projection transposed": ("weight", Join.HEAD_COLUMNS, transposed),
    "biases dropped": ("bias", Join.QKV, lambda parts: tuple(torch.zeros_like(part) for part in parts)),
    "value bias dropped": ("bias", Join.QKV, lambda parts: (*parts[:2], torch.zeros_like(parts[2]))),
}


def plant(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Puts the bug into the conversion alone; reading a layout back does not undo it."""
    kind, how_of_bug, bug = PLANTED[name]

    def join(parts: Parts, how: Join, shape: ModelShape) -> Tensor:
        hit = how is how_of_bug and (parts[0].ndim == 1) == (kind == "bias")
        return partition.join(bug(parts) if hit else parts, how, shape)

    monkeypatch.setattr(convert, "join", join)


@pytest.fixture(scope="module")
def biased_model(write_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of the sizes of the tiny Llama."""
    return write_model(tmp_path_factory.mktemp("biased"), "qwen2")


def test_what_cannot_be_cut_is_refused_before_anything_is_written(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "layout"
    with pytest.raises(SurgeryError, match=r"surgery\.tensor_parallel = 8: .* has 4 query heads; use 4 or less"):
        convert.run(SurgeryConfig(tensor_parallel=8), source=tiny_model, out_dir=out)
    assert not out.exists()
    assert convert.check(SurgeryConfig(tensor_parallel=2), tiny_model).kv_heads == 2


def test_verification_can_be_switched_off(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = convert.run(SurgeryConfig(verify="off"), source=tiny_model, out_dir=tmp_path)
    assert made.verification is None
    assert "the layout is not compared with its source" in caplog.text
    assert damaged_tensors(tmp_path, made.layout) == []
    assert Layout.load(tmp_path) == made.layout


def test_comparison_counts_clear_top_1_differences_and_refuses_nan() -> None:
    expected = torch.tensor([[[1.0, 0.5, 0.0], [1.0, 1.0 - 1e-5, 0.0]]])
    assert compare(expected, expected).ok
    near = expected.clone()
    near[0, 1] = torch.tensor([1.0 - 1e-5, 1.0, 0.0])  # the two best were closer than the limit: no difference
    assert compare(expected, near).top1_agreement == 1.0
    other = expected.clone()
    other[0, 0] = torch.tensor([0.5, 1.5, 0.0])
    result = compare(expected, other)
    assert result.top1_agreement == 0.5
    assert result.max_difference == pytest.approx(1.0)
    assert not result.ok
    assert not Comparison(max_difference=0.0, limit=1.0, top1_agreement=0.99).ok
    assert not compare(expected, expected + torch.tensor([torch.nan, 0.0, 0.0])).ok
    assert compare(expected * 1000, expected * 1000).limit == pytest.approx(
        1e-4 * (expected * 1000).square().mean().sqrt()
    )


def test_tokens_are_text_and_random_ones(small_llama: Path, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokens, text = verification_tokens(small_llama, read_shape(small_llama), 2000)
    assert (tokens.shape, text) == ((2, 512), 512)  # its context
    assert AutoTokenizer.from_pretrained(small_llama).decode(tokens[0]).startswith("<|start|> The lighthouse")
    assert len(tokens[1].unique()) > 300
    shape = read_shape(tiny_model)
    tokens, text = verification_tokens(tiny_model, shape, 20)
    assert text == 20
    assert tokens[0].unique().tolist() == [0]  # it knows none of these words: hence the random ones
    without = Path(shutil.copytree(tiny_model, tmp_path / "without"))
    (without / "tokenizer.json").unlink()
    assert verification_tokens(without, shape, 20)[1] == 0
    (without / "tokenizer.json").write_text("{}")
    assert verification_tokens(without, shape, 20)[1] == 0


@pytest.mark.long
@pytest.mark.slow
def test_a_real_checkpoint_at_tp_3_passes(smollm2_two_layers: Path, tmp_path: Path) -> None:
    made = convert.run(SurgeryConfig(tensor_parallel=3), source=smollm2_two_layers, out_dir=tmp_path)
    result = made.verification
    assert result.ok
    assert (result.tokens, result.text_tokens, result.tensors, result.layers) == (512, 256, 14, (0, 1))
    assert result.comparisons.keys() == {ROPE, NO_PE}
    for comparison in result.comparisons.values():
        # Its logits have a root mean square of about 3; fp32 in another order of sums gives 2e-5.
        assert comparison.max_difference < 1e-4
        assert comparison.top1_agreement == 1.0
    assert "with RoPE: largest logit difference" in result.describe()
    assert made.layout.shape.tied
    assert Layout.load(tmp_path) == made.layout
    assert json.loads(json.dumps(result.facts()))["comparisons"][ROPE]["max_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tensor_parallel", "qk_norm"),
    [
        ("odd", 2, "full"),
        pytest.param("odd", 4, "none", marks=pytest.mark.long),
        ("qwen2", 2, "per_head"),
        pytest.param("qwen2", 4, "full", marks=pytest.mark.long),
    ],
)
def test_a_model_whose_heads_do_not_divide_passes(
    name: str, tensor_parallel: int, qk_norm: str, odd_model: Path, qwen2_model: Path, tmp_path: Path
) -> None:
    source = {"odd": odd_model, "qwen2": qwen2_model}[name]
    config = SurgeryConfig(tensor_parallel=tensor_parallel, qk_norm=qk_norm)
    made = convert.run(config, source=source, out_dir=tmp_path)
    assert made.verification.ok
    assert made.verification.comparisons.keys() == {ROPE, NO_PE} | ({QK_NORM} if qk_norm != "none" else set())
    assert max(c.max_difference for c in made.verification.comparisons.values()) < 1e-4
    with Checkpoint(source) as checkpoint:
        for entry in made.layout.tensors:
            for source_name, tensor in read_sources(tmp_path, made.layout, entry).items():
                expected = torch.ones_like(tensor) if "_norm" in source_name else checkpoint.tensor(source_name)
                assert torch.equal(tensor, expected)


@pytest.mark.slow
def test_a_layout_that_fails_its_verification_is_refused_and_removed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug that TP 1 cannot have: gate above up, cut as one matrix, so that rank 0 has all of gate."""

    def split(joined: Tensor, how: Join, shape: ModelShape, tensor_parallel: int) -> list[Tensor]:
        if how is not Join.GATE_UP:
            return partition.split(joined, how, shape, tensor_parallel)
        return [piece.contiguous() for piece in joined.flatten(0, 1).chunk(tensor_parallel)]

    monkeypatch.setattr("model_surgery.layout_writer.split", split)
    with pytest.raises(SurgeryError, match="the layout does not compute what") as refused:
        convert.run(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=tmp_path)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def verified_here(source: Path, folder: Path, layers: tuple[int, ...] | None = None) -> Verification:
    """`verify` with the one TP rank in this process, which saves the seconds that a new one takes to start."""
    layout, own = Layout.load(folder), read_shape(source)
    tokens = torch.randint(layout.shape.vocab, (2, 32), generator=torch.Generator().manual_seed(0))
    runs = planned_runs(own, layout.shape, layers or tuple(range(layout.shape.layers)))
    inserted = {
        name: tensor
        for entry in layout.tensors
        if runs[-1].name == QK_NORM and entry.target.endswith(("q_layernorm.weight", "k_layernorm.weight"))
        for name, tensor in read_sources(folder, layout, entry).items()
    }
    got = layout_logits(folder, 0, tokens, runs)
    return Verification(
        comparisons={run.name: compare(reference_logits(source, run, tokens, inserted), got[run.name]) for run in runs},
        tokens=tokens.numel(),
        text_tokens=0,
        layers=runs[0].layers,
        config_differences=config_differences(source, layout.shape),
        tensors=len(layout.tensors),
        changed_tensors=changed_tensors(source, folder, layout, inserted),
    )


@pytest.mark.usefixtures("megatron_of_one")
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_caught(
    name: str, tiny_model: Path, biased_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = biased_model if PLANTED[name][0] == "bias" else tiny_model
    plant(monkeypatch, name)
    convert.convert(SurgeryConfig(), source=source, out_dir=tmp_path)
    result = verified_here(source, tmp_path)
    assert result.comparisons[ROPE].max_difference > 100 * result.comparisons[ROPE].limit
    assert not result.ok
    # Why the rotation is kept for one of the two comparisons:
    assert result.comparisons[NO_PE].ok == (name == INVISIBLE_WITHOUT_ROPE)
    # The third one sees the tensors themselves.
    assert result.changed_tensors
    assert "is not the source's" in result.describe()


@pytest.mark.usefixtures("megatron_of_one")
@pytest.mark.parametrize(("key", "value"), [("norm_eps", 1e-6), ("rope_theta", 500.0)])
def test_a_wrong_number_in_layout_json_is_caught(
    key: str, value: float, layouts: dict[int, Path], tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(layouts[1], tmp_path / "wrong"))
    raw = json.loads((folder / LAYOUT_FILE).read_text())
    raw["shape"][key] = value
    (folder / LAYOUT_FILE).write_text(json.dumps(raw))
    result = verified_here(tiny_model, folder)
    assert not result.comparisons[ROPE].ok  # seen in the logits
    assert len(result.config_differences) == 1  # and, where logits hardly move, in the number itself
    assert not result.ok


@pytest.mark.usefixtures("megatron_of_one")
def test_one_changed_weight_in_one_layer_is_caught(layout_copy: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Too small for the logits, and with a digest that agrees: only the comparison of tensors can see it."""
    from model_surgery.layout import tensor_digest

    folder = tmp_path / "changed"
    convert.convert(SurgeryConfig(), source=tiny_model, out_dir=folder)
    raw = json.loads((folder / LAYOUT_FILE).read_text())
    entry = next(e for e in raw["tensors"] if e["target"] == "decoder.layers.1.mlp.linear_fc2.weight")
    path = folder / entry["pieces"][0]["file"]
    tensors = load_file(path)
    tensors[entry["target"]][3, 5] += 1e-7
    save_file(tensors, path)
    entry["pieces"][0]["sha256"] = tensor_digest(tensors[entry["target"]])
    (folder / LAYOUT_FILE).write_text(json.dumps(raw))
    result = verified_here(tiny_model, folder)
    assert all(comparison.ok for comparison in result.comparisons.values())
    assert result.changed_tensors == ("model.layers.1.mlp.down_proj.weight",)
    assert not result.ok


@pytest.mark.usefixtures("megatron_of_one")
def test_a_right_layout_passes(
    layouts: dict[int, Path], tiny_model: Path, smollm2_two_layers: Path, tmp_path: Path
) -> None:
    convert.convert(SurgeryConfig(), source=smollm2_two_layers, out_dir=tmp_path)
    for source, folder in ((tiny_model, layouts[1]), (smollm2_two_layers, tmp_path)):
        result = verified_here(source, folder)
        assert result.ok
        assert result.comparisons[ROPE].max_difference < 1e-4


def test_the_first_middle_and_last_layer_are_sampled() -> None:
    assert sampled_layers(32) == (0, 16, 31)
    assert sampled_layers(2) == (0, 1)
    assert sampled_layers(1) == (0,)


@pytest.mark.usefixtures("megatron_of_one")
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_sample_of_layers_is_a_model_of_these_layers(
    model_type: str, write_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_model(tmp_path / "deep", model_type, num_hidden_layers=5)
    convert.convert(SurgeryConfig(qk_norm="full"), source=source, out_dir=tmp_path / "right")
    result = verified_here(source, tmp_path / "right", (0, 2, 4))
    assert result.ok
    assert result.layers == (0, 2, 4)
    assert result.comparisons.keys() == {ROPE, NO_PE, QK_NORM}
    plant(monkeypatch, INVISIBLE_WITHOUT_ROPE)
    convert.convert(SurgeryConfig(), source=source, out_dir=tmp_path / "wrong")
    assert not verified_here(source, tmp_path / "wrong", (0, 2, 4)).comparisons[ROPE].ok


@pytest.mark.slow
def test_sample_in_processes_of_its_own(write_model: Callable[..., Path], tmp_path: Path) -> None:
    source = write_model(tmp_path / "deep", num_hidden_layers=5)
    config = SurgeryConfig(tensor_parallel=2, verify="sample", qk_norm="per_head")
    result = convert.run(config, source=source, out_dir=tmp_path / "layout").verification
    assert result.ok
    assert (result.layers, result.tensors) == ((0, 2, 4), 5 * 8 + 3)
