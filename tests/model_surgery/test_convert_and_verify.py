"""Surgery with its own verification in real Megatron-core processes: right layouts pass, planted bugs do not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_surgery import convert, partition
from model_surgery.architectures import Join
from model_surgery.checkpoint import Checkpoint
from model_surgery.config import SurgeryConfig
from model_surgery.errors import SurgeryError
from model_surgery.layout import LAYOUT_FILE, Layout, damaged_tensors, read_sources
from model_surgery.shape import ModelShape
from model_surgery.verify import (
    Comparison,
    Verification,
    compare,
    config_differences,
    judge,
    layout_logits,
    source_logits,
    verify,
)

HEAD_DIM = 8
Parts = tuple[Tensor, ...]


def permuted_head_dimensions(parts: Parts) -> Parts:
    """q and k rows reversed within every head: the same function without RoPE, another one with it."""
    q, k, v = parts
    q, k = (part.reshape(-1, HEAD_DIM, part.shape[1]).flip(1).reshape(part.shape) for part in (q, k))
    return q, k, v


def interleaved_query_heads(parts: Parts) -> Parts:
    """Query heads dealt out to the KV groups in turn instead of in blocks."""
    q, k, v = parts
    return q.reshape(2, 2, HEAD_DIM, -1).transpose(0, 1).reshape(q.shape), k, v


def shifted_kv_group(parts: Parts) -> Parts:
    q, k, v = parts
    return q, k.roll(HEAD_DIM, 0), v.roll(HEAD_DIM, 0)


INVISIBLE_WITHOUT_ROPE = "head dimensions of q and k permuted"
PLANTED: dict[str, tuple[Join, Callable[[Parts], Parts]]] = {
    INVISIBLE_WITHOUT_ROPE: (Join.QKV, permuted_head_dimensions),
    "query heads interleaved": (Join.QKV, interleaved_query_heads),
    "one KV group shifted": (Join.QKV, shifted_kv_group),
    "k and v swapped": (Join.QKV, lambda parts: (parts[0], parts[2], parts[1])),
    "gate and up swapped": (Join.GATE_UP, lambda parts: parts[::-1]),
    "output projection transposed": (
        Join.HEAD_COLUMNS,
        lambda parts: tuple(part.T.contiguous() if part.shape[0] == part.shape[1] else part for part in parts),
    ),
}


def plant(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    how_of_bug, bug = PLANTED[name]

    def join(parts: Parts, how: Join, shape: ModelShape) -> Tensor:
        return partition.join(bug(parts) if how is how_of_bug else parts, how, shape)

    monkeypatch.setattr(convert, "join", join)


def test_what_cannot_be_cut_is_refused_before_anything_is_written(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "layout"
    with pytest.raises(SurgeryError, match=r"surgery\.tensor_parallel = 8: .* has 4 query heads; use 4 or less"):
        convert.run(SurgeryConfig(tensor_parallel=8), source=tiny_model, out_dir=out)
    assert not out.exists()
    assert convert.check(SurgeryConfig(tensor_parallel=2), tiny_model).kv_heads == 2


def test_verification_can_be_switched_off(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout, result = convert.run(SurgeryConfig(verify="off"), source=tiny_model, out_dir=tmp_path)
    assert result is None
    assert "the layout is not compared with its source" in caplog.text
    assert damaged_tensors(tmp_path, layout) == []
    assert Layout.load(tmp_path) == layout


def test_comparison_counts_clear_top_1_differences_and_refuses_nan() -> None:
    wanted = torch.tensor([[[1.0, 0.5, 0.0], [1.0, 1.0 - 1e-5, 0.0]]])
    assert compare(wanted, wanted).ok
    near = wanted.clone()
    near[0, 1] = torch.tensor([1.0 - 1e-5, 1.0, 0.0])  # the two best were closer than the limit: no difference
    assert compare(wanted, near).top1_agreement == 1.0
    other = wanted.clone()
    other[0, 0] = torch.tensor([0.5, 1.5, 0.0])
    result = compare(wanted, other)
    assert result.top1_agreement == 0.5
    assert result.max_difference == pytest.approx(1.0)
    assert not result.ok
    assert not Comparison(max_difference=0.0, limit=1.0, top1_agreement=0.99).ok
    assert not compare(wanted, wanted + torch.tensor([torch.nan, 0.0, 0.0])).ok
    assert compare(wanted * 1000, wanted * 1000).limit == pytest.approx(1e-4 * (wanted * 1000).square().mean().sqrt())


@pytest.mark.slow
def test_a_real_checkpoint_at_tp_2_passes(tinystories: Path, tmp_path: Path) -> None:
    layout, result = convert.run(SurgeryConfig(tensor_parallel=2), source=tinystories, out_dir=tmp_path)
    assert result.ok
    assert result.tokens == 512
    for comparison in (result.with_rope, result.without_pe):
        # Its logits have a root mean square of about 3; fp32 in another order of sums gives 2e-5.
        assert comparison.max_difference < 1e-4
        assert comparison.top1_agreement == 1.0
    assert layout.shape.tied
    assert Layout.load(tmp_path) == layout
    assert json.loads(json.dumps(result.facts()))["with_rope"]["max_difference"] < 1e-4


@pytest.mark.slow
def test_a_grouped_untied_model_at_tp_2_passes(layouts: dict[int, Path], tiny_model: Path) -> None:
    result = verify(tiny_model, layouts[2], Layout.load(layouts[2]), length=32)
    assert result.ok
    assert max(result.with_rope.max_difference, result.without_pe.max_difference) < 2e-5
    assert "with RoPE: largest logit difference" in result.describe()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tensor_parallel"), [("odd", 2), ("odd", 4), ("qwen2", 2), ("qwen2", 4)])
def test_a_model_whose_heads_do_not_divide_passes(
    name: str, tensor_parallel: int, odd_model: Path, qwen2_model: Path, tmp_path: Path
) -> None:
    source = {"odd": odd_model, "qwen2": qwen2_model}[name]
    layout, result = convert.run(SurgeryConfig(tensor_parallel=tensor_parallel), source=source, out_dir=tmp_path)
    assert result.ok
    assert max(result.with_rope.max_difference, result.without_pe.max_difference) < 3e-5
    with Checkpoint(source) as checkpoint:
        for entry in layout.tensors:
            for source_name, tensor in read_sources(tmp_path, layout, entry).items():
                assert torch.equal(tensor, checkpoint.tensor(source_name))


@pytest.mark.slow
def test_a_layout_that_fails_its_verification_is_refused_and_removed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug that TP 1 cannot have: gate above up, cut as one matrix, so that rank 0 has all of gate."""

    def split(joined: Tensor, how: Join, shape: ModelShape, tensor_parallel: int) -> list[Tensor]:
        if how is not Join.GATE_UP:
            return partition.split(joined, how, shape, tensor_parallel)
        return [piece.contiguous() for piece in joined.flatten(0, 1).chunk(tensor_parallel)]

    monkeypatch.setattr("model_surgery.layout.split", split)
    with pytest.raises(SurgeryError, match="the layout does not compute what") as refused:
        convert.run(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=tmp_path)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def verified_here(source: Path, folder: Path) -> Verification:
    """`verify` with the one TP rank in this process, which saves the seconds that a new one takes to start."""
    layout = Layout.load(folder)
    tokens = torch.randint(layout.shape.vocab, (2, 32), generator=torch.Generator().manual_seed(0))
    wanted = {
        "rope": source_logits(source, tokens, identity_rotation=False),
        "none": source_logits(source, tokens, identity_rotation=True),
    }
    return judge(wanted, layout_logits(folder, 0, tokens), config_differences(source, layout.shape))


@pytest.mark.usefixtures("megatron_of_one")
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_caught(name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, name)
    convert.convert(SurgeryConfig(), source=tiny_model, out_dir=tmp_path)
    result = verified_here(tiny_model, tmp_path)
    assert result.with_rope.max_difference > 100 * result.with_rope.limit
    assert not result.ok
    # Why the rotation is kept for one of the two comparisons:
    assert result.without_pe.ok == (name == INVISIBLE_WITHOUT_ROPE)


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
    assert not result.with_rope.ok  # seen in the logits
    assert len(result.config_differences) == 1  # and, where logits hardly move, in the number itself
    assert not result.ok


@pytest.mark.usefixtures("megatron_of_one")
def test_a_right_layout_passes(layouts: dict[int, Path], tiny_model: Path, tinystories: Path, tmp_path: Path) -> None:
    convert.convert(SurgeryConfig(), source=tinystories, out_dir=tmp_path)
    for source, folder in ((tiny_model, layouts[1]), (tinystories, tmp_path)):
        result = verified_here(source, folder)
        assert result.ok
        assert result.with_rope.max_difference < 1e-4
