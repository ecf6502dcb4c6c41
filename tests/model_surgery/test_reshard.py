"""From one TP degree to another and back: the same files, byte for byte, and those that surgery writes there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foundation.errors import DiskError
from model_surgery.architectures import rules, source_shapes
from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.errors import SurgeryError
from model_surgery.layout import LAYOUT_FILE, Layout, read_rank
from model_surgery.layout_writer import LayoutWriter
from model_surgery.partition import join
from model_surgery.reshard import reshard
from model_surgery.shape import ModelShape


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def random_layout(shape: ModelShape, tensor_parallel: int, folder: Path) -> Layout:
    """A layout of random weights, the same whatever the TP degree, that says it was trained."""
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(size, generator=draw) for name, size in source_shapes(shape).items()}
    with LayoutWriter(folder, shape, tensor_parallel) as writer:
        for rule in rules(shape):
            writer.put(rule, join(tuple(tensors[name] for name in rule.sources), rule.join, shape))
        origin = {"source": "model", "source_fingerprint": "f", "inserted_norms": "ones"}
        facts = {"position_embedding": "rope", "trained_steps": 7, "trained_tokens": 700}
        return writer.finish(**origin, **facts)


@pytest.mark.parametrize("sizes", [{}, {"tied": True}, {"qkv_bias": True}], ids=["plain", "tied", "biases"])
@pytest.mark.parametrize("norms", ["none", "full", "per_head"])
@pytest.mark.parametrize("degrees", [(2, 1), (2, 4), (4, 3), (1, 6)], ids=str)
def test_there_and_back_gives_the_same_bytes(
    degrees: tuple[int, int],
    norms: str,
    sizes: dict[str, object],
    make_shape: Callable[..., ModelShape],
    tmp_path: Path,
) -> None:
    """6 query and 3 KV heads, feed-forward 67, 97 ids: padded at 2 and 4, by different amounts."""
    shape = make_shape(heads=6, kv_heads=3, ffn=67, vocab=97, q_norm=norms, k_norm=norms, **sizes)
    first, second = degrees
    layout = random_layout(shape, first, tmp_path / "first")
    there = reshard(tmp_path / "first", tensor_parallel=second, out_dir=tmp_path / "there")
    back = reshard(tmp_path / "there", tensor_parallel=first, out_dir=tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "first")
    assert back == layout and back.trained_steps == 7 and back.position_embedding == "rope"
    random_layout(shape, second, tmp_path / "direct")
    assert contents(tmp_path / "there") == contents(tmp_path / "direct")
    assert there.tensor_parallel == second and there.origin == layout.origin


@pytest.mark.parametrize("model", ["odd_model", "qwen2_model"])
def test_equals_surgery_at_that_degree(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(model)
    for tensor_parallel in (2, 4):
        convert(SurgeryConfig(tensor_parallel=tensor_parallel), source=source, out_dir=tmp_path / str(tensor_parallel))
    resharded = reshard(tmp_path / "2", tensor_parallel=4, out_dir=tmp_path / "resharded")
    assert resharded.digest() == Layout.load(tmp_path / "4").digest()
    assert contents(tmp_path / "resharded") == contents(tmp_path / "4")


def test_more_ranks_than_query_heads_are_refused(layouts: dict[int, Path], tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="--tensor-parallel 5: the model has 4 query heads; use 4 or less"):
        reshard(layouts[2], tensor_parallel=5, out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_layout_leaves_nothing(layout_copy: Path, tmp_path: Path) -> None:
    victim = layout_copy / "tp01-0000.safetensors"
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    victim.write_bytes(content)
    with pytest.raises(SurgeryError, match=r"tp01-0000\.safetensors: .* is damaged"):
        reshard(layout_copy, tensor_parallel=1, out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_padding_that_is_not_zero_is_refused(odd_model: Path, tmp_path: Path) -> None:
    layout = convert(SurgeryConfig(tensor_parallel=2), source=odd_model, out_dir=tmp_path / "right")
    with LayoutWriter(tmp_path / "wrong", layout.shape, 2) as writer:
        states = [read_rank(tmp_path / "right", layout, rank) for rank in range(2)]
        states[1]["decoder.layers.0.mlp.linear_fc2.weight"][:, -1] = 1.0
        for rule in rules(layout.shape):
            writer.put_slices(rule, [state[rule.target] for state in states])
        writer.finish(position_embedding="none", **layout.origin)
    with pytest.raises(SurgeryError, match=r"layers\.0\.mlp\.linear_fc2\.weight: its padding is not zero"):
        reshard(tmp_path / "wrong", tensor_parallel=1, out_dir=tmp_path / "out")


def test_copies_that_differ_are_told_of(
    layouts: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = Layout.load(layouts[2])
    name = "decoder.final_layernorm.weight"
    with LayoutWriter(tmp_path / "drifted", layout.shape, 2) as writer:
        for rule in rules(layout.shape):
            slices = [load_file(layouts[2] / f"tp0{rank}-0000.safetensors")[rule.target] for rank in range(2)]
            writer.put_slices(rule, [slices[0], slices[1] + (1.0 if rule.target == name else 0.0)])
        writer.finish(position_embedding="none", **layout.origin)
    reshard(tmp_path / "drifted", tensor_parallel=1, out_dir=tmp_path / "out")
    assert f"different copies of {name}" in caplog.text
    (only,) = (tmp_path / "out").glob("*.safetensors")
    assert torch.equal(load_file(only)[name], load_file(layouts[2] / "tp00-0000.safetensors")[name])


def test_a_full_disk_is_one_line(layouts: dict[int, Path], small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(40_000))
    with pytest.raises(DiskError, match="the disk is full"):
        reshard(layouts[2], tensor_parallel=1, out_dir=small_disk / "out")
    assert not (small_disk / "out" / LAYOUT_FILE).exists()
