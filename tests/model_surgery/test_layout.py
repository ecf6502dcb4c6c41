"""The layout on disk: what is written is read, and what is damaged is named."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.errors import DiskError
from model_surgery.architectures import Rule, rules, source_shapes
from model_surgery.checkpoint import Checkpoint
from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.errors import SurgeryError
from model_surgery.layout import LAYOUT_FILE, Entry, Layout, damaged_tensors, read_rank, read_sources
from model_surgery.layout_writer import LayoutWriter
from model_surgery.partition import join, split
from model_surgery.shape import ModelShape

NAME = "decoder.layers.1.mlp.linear_fc1.weight"
RANK_1 = "tp01-0000.safetensors"


def rule_of(entry: Entry) -> Rule:
    return Rule(entry.target, entry.sources, entry.join)


def flip_byte(path: Path, name: str) -> None:
    """Flips one bit of the named tensor's data in a safetensors file."""
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    start = json.loads(content[8 : 8 + header])[name]["data_offsets"][0]
    content[8 + header + start + 5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_all_source_tensors_come_back_exactly(tensor_parallel: int, layouts: dict[int, Path], tiny_model: Path) -> None:
    folder = layouts[tensor_parallel]
    layout = Layout.load(folder)
    assert layout.position_embedding == "none"
    assert damaged_tensors(folder, layout) == []
    with Checkpoint(tiny_model) as checkpoint:
        seen = set()
        for entry in layout.tensors:
            for name, tensor in read_sources(folder, layout, entry).items():
                assert torch.equal(tensor, checkpoint.tensor(name))
                seen.add(name)
    assert seen == load_file(tiny_model / "model.safetensors").keys()


def test_read_rank_reads_what_the_pieces_describe(layouts: dict[int, Path]) -> None:
    layout = Layout.load(layouts[2])
    for rank in range(2):
        state = read_rank(layouts[2], layout, rank)
        assert {n: tuple(t.shape) for n, t in state.items()} == {
            entry.target: entry.pieces[rank].shape for entry in layout.tensors
        }


def test_a_flipped_bit_is_found_named_and_not_read(layout_copy: Path) -> None:
    layout = Layout.load(layout_copy)
    flip_byte(layout_copy / RANK_1, NAME)
    assert damaged_tensors(layout_copy, layout) == [f"{NAME} (TP rank 1)"]
    assert NAME in read_rank(layout_copy, layout, 0)
    with pytest.raises(SurgeryError, match=f"{RANK_1}: {NAME} is damaged"):
        read_rank(layout_copy, layout, 1)
    entry = next(entry for entry in layout.tensors if entry.target == NAME)
    with pytest.raises(SurgeryError, match=f"{RANK_1}: {NAME} is damaged"):
        read_sources(layout_copy, layout, entry)


def test_every_byte_of_a_file_is_watched(layout_copy: Path) -> None:
    """One flipped bit anywhere, in the header too, is refused or named; but not in the spaces that fill it up."""
    layout = Layout.load(layout_copy)
    path = layout_copy / RANK_1
    content = path.read_bytes()
    header = 8 + len(content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip())
    data = 8 + int.from_bytes(content[:8], "little")
    for position in (*range(header), *range(data, len(content), 4099), len(content) - 1):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        try:
            result = damaged_tensors(layout_copy, layout)
        except SurgeryError as error:
            reasons = ("not a readable safetensors file", "cannot be read ", f", {LAYOUT_FILE} says ")
            assert f"{RANK_1}: " in str(error) and any(reason in str(error) for reason in reasons)
            assert "\n" not in str(error)
        else:
            assert len(result) in (1, 2), position  # 2 where places of two tensors are exchanged


def test_a_tensor_of_another_dtype_or_shape_is_named(layout_copy: Path) -> None:
    layout = Layout.load(layout_copy)
    path = layout_copy / RANK_1
    whole = load_file(path)
    save_file(whole | {NAME: whole[NAME].view(torch.int32)}, path)
    with pytest.raises(SurgeryError, match=rf"{RANK_1}: {NAME} is int32 \[64, 32\], layout.json says float32"):
        damaged_tensors(layout_copy, layout)
    save_file(whole | {NAME: whole[NAME].reshape(32, 64)}, path)
    with pytest.raises(SurgeryError, match=rf"{RANK_1}: {NAME} is float32 \[32, 64\], layout.json says float32 \[64"):
        read_rank(layout_copy, layout, 1)


def test_missing_and_cut_files_are_named(layout_copy: Path) -> None:
    layout = Layout.load(layout_copy)
    path = layout_copy / RANK_1
    tensors = load_file(path)
    del tensors[NAME]
    save_file(tensors, path)
    with pytest.raises(SurgeryError, match=f"{RANK_1}: {NAME} cannot be read"):
        read_rank(layout_copy, layout, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SurgeryError, match=f"{RANK_1}: not a readable safetensors file"):
        damaged_tensors(layout_copy, layout)
    path.unlink()
    with pytest.raises(SurgeryError, match=f"{RANK_1}: no such file, though layout.json names it"):
        read_rank(layout_copy, layout, 1)


def test_a_layout_json_that_is_none_is_refused(layout_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"layout\.json: no such file"):
        Layout.load(tmp_path)
    path = layout_copy / LAYOUT_FILE
    whole = json.loads(path.read_text())

    def refusal(value: object) -> str:
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        with pytest.raises(SurgeryError) as refused:
            Layout.load(layout_copy)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "not a layout: the whole: Invalid JSON" in refusal(b"{")
    assert "not a layout: the whole: Invalid JSON" in refusal(b"\xff\xfe")
    assert "not a layout: schema_version: Input should be 2; run" in refusal(whole | {"schema_version": 1})
    assert "not a layout: extra: Extra inputs are not permitted; run" in refusal(whole | {"extra": 1})
    assert "2 pieces for TP 3" in refusal(whole | {"tensor_parallel": 3})
    whole["tensors"][0]["pieces"][0]["file"] = "../tp00-0000.safetensors"
    assert "not a layout: tensors.0.pieces.0.file: String should match pattern" in refusal(whole)


def test_the_digest_follows_the_weights_and_the_cut(layouts: dict[int, Path], tiny_model: Path, tmp_path: Path) -> None:
    again = convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=tmp_path / "again")
    assert again.digest() == Layout.load(layouts[2]).digest()
    assert again.digest() != Layout.load(layouts[1]).digest()

    def rewritten(change: bool) -> str:
        layout = Layout.load(layouts[1])
        state = read_rank(layouts[1], layout, 0)
        writer = LayoutWriter(tmp_path / f"changed-{change}", layout.shape, 1)
        for entry in layout.tensors:
            tensor = state[entry.target]
            if change and entry.target == NAME:
                tensor.view(torch.uint8).flatten()[0] ^= 1
            writer.put_slices(rule_of(entry), [tensor])
        return writer.finish(position_embedding="none", source="s", source_fingerprint="f").digest()

    assert rewritten(change=False) == Layout.load(layouts[1]).digest()
    assert rewritten(change=True) != Layout.load(layouts[1]).digest()


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("waiting_bytes", [0, 256 << 20])
def test_files_do_not_depend_on_the_number_of_threads(
    threads: int,
    waiting_bytes: int,
    layouts: dict[int, Path],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model_surgery.layout_writer._THREADS", threads)
    monkeypatch.setattr("model_surgery.layout_writer._WAITING_BYTES", waiting_bytes)
    convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in layouts[2].iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (layouts[2] / name).read_bytes()


def test_the_files_are_what_safetensors_itself_reads(layouts: dict[int, Path]) -> None:
    layout = Layout.load(layouts[2])
    for rank in range(2):
        whole = load_file(layouts[2] / f"tp{rank:02d}-0000.safetensors")
        state = read_rank(layouts[2], layout, rank)
        assert whole.keys() == state.keys()
        assert all(torch.equal(whole[name], state[name]) for name in whole)


def test_tensors_of_several_dtypes_and_odd_sizes(make_shape: Callable[..., ModelShape], tmp_path: Path) -> None:
    shape = make_shape(hidden=31, heads=3, kv_heads=1, head_dim=1, ffn=7, vocab=3, layers=1)
    dtypes = itertools.cycle((torch.bfloat16, torch.float32, torch.float16))
    expected = {}
    with LayoutWriter(tmp_path, shape, 1) as writer:
        for rule in rules(shape):
            sizes = {name: source_shapes(shape)[name] for name in rule.sources}
            dtype = next(dtypes)
            joined = join(tuple(torch.randn(size).to(dtype) for size in sizes.values()), rule.join, shape)
            expected[rule.target] = split(joined, rule.join, shape, 1)[0]
            writer.put(rule, joined)
        layout = writer.finish(position_embedding="none", source="s", source_fingerprint="f")
    got = read_rank(tmp_path, layout, 0)
    assert all(got[name].dtype == tensor.dtype and torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_old_layouts_of_many_files_per_rank_are_read(layout_copy: Path, layouts: dict[int, Path]) -> None:
    """Files of at most 512 MiB, as they were written once."""
    raw = json.loads((layout_copy / LAYOUT_FILE).read_text())
    whole = load_file(layout_copy / RANK_1)
    (layout_copy / RANK_1).unlink()
    for number, entry in enumerate(raw["tensors"]):
        entry["pieces"][1]["file"] = f"tp01-{number:04d}.safetensors"
        save_file({entry["target"]: whole[entry["target"]]}, layout_copy / f"tp01-{number:04d}.safetensors")
    (layout_copy / LAYOUT_FILE).write_text(json.dumps(raw))
    layout = Layout.load(layout_copy)
    assert damaged_tensors(layout_copy, layout) == []
    assert layout.digest() == Layout.load(layouts[2]).digest()
    state = read_rank(layout_copy, layout, 1)
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_a_failing_write_leaves_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count(1)
    pwrite = os.pwrite

    def broken(descriptor: int, data: memoryview, offset: int) -> int:
        if next(calls) == 12:
            raise OSError(5, "Input/output error")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr("model_surgery.tensor_file.os.pwrite", broken)
    with pytest.raises(OSError, match="Input/output error"):
        convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=tmp_path)
    assert next(calls) > 12
    assert list(tmp_path.iterdir()) == []


def test_a_short_write_is_gone_on_with(
    layouts: dict[int, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux writes at most 2 GiB at a time, and less on some network disks."""
    pwrite = os.pwrite
    monkeypatch.setattr("model_surgery.tensor_file.os.pwrite", lambda fd, data, offset: pwrite(fd, data[:1000], offset))
    convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=tmp_path)
    assert (tmp_path / RANK_1).read_bytes() == (layouts[2] / RANK_1).read_bytes()


def test_an_earlier_layout_stays_whole_until_its_files_are_replaced(
    layout_copy: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.load(layout_copy)
    with pytest.raises(KeyboardInterrupt), LayoutWriter(layout_copy, layout.shape, 1) as writer:
        writer.put_slices(rule_of(layout.tensors[0]), [torch.zeros(96, 32)])
        raise KeyboardInterrupt
    assert Layout.load(layout_copy) == layout
    assert damaged_tensors(layout_copy, layout) == []

    def broken(path: Path, value: object) -> None:
        assert not path.exists()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("model_surgery.layout_writer.write_json", broken)
    with pytest.raises(OSError, match="Input/output error"):
        convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=layout_copy)
    assert list(layout_copy.iterdir()) == []


def test_a_writer_that_is_not_finished_leaves_nothing(layouts: dict[int, Path], tmp_path: Path) -> None:
    layout = Layout.load(layouts[1])
    with LayoutWriter(tmp_path, layout.shape, 1) as writer:
        writer.put_slices(rule_of(layout.tensors[0]), [torch.zeros(96, 32)])
        assert list(tmp_path.iterdir()) != []
        with pytest.raises(ValueError, match=r"tensor embedding\.word_embeddings\.weight twice"):
            writer.put_slices(rule_of(layout.tensors[0]), [torch.zeros(96, 32)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("waiting_bytes", [0, 256 << 20], ids=["in a put", "at the end"])
def test_a_full_disk_is_bad_input(
    waiting_bytes: int, tiny_model: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_surgery.layout_writer._WAITING_BYTES", waiting_bytes)
    (small_disk / "other").write_bytes(bytes(40_000))
    with pytest.raises(DiskError, match="the disk is full") as refused:
        convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=small_disk / "layout")
    assert "\n" not in str(refused.value)
    assert list((small_disk / "layout").iterdir()) == []
