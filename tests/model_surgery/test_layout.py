"""The layout on disk: what is written is read, and what is damaged is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_surgery.architectures import Rule
from model_surgery.checkpoint import Checkpoint
from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.errors import SurgeryError
from model_surgery.layout import LAYOUT_FILE, Entry, Layout, LayoutWriter, damaged_tensors, read_rank, read_sources

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

    assert "Invalid JSON" in refusal(b"{")
    assert "not a layout" in refusal(b"\xff\xfe")
    assert "schema_version" in refusal(whole | {"schema_version": 1})
    assert "extra" in refusal(whole | {"extra": 1})
    assert "2 pieces for TP 3" in refusal(whole | {"tensor_parallel": 3})
    whole["tensors"][0]["pieces"][0]["file"] = "../tp00-0000.safetensors"
    assert "tensors.0.pieces.0.file" in refusal(whole)


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


def test_many_small_files_read_as_one(
    layouts: dict[int, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_surgery.layout._FLUSH_BYTES", 10_000)
    many = convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=tmp_path)
    assert len(list(tmp_path.glob("tp01-*"))) > 3
    one = Layout.load(layouts[2])
    assert many.digest() == one.digest()
    for rank in range(2):
        wanted, got = read_rank(layouts[2], one, rank), read_rank(tmp_path, many, rank)
        assert wanted.keys() == got.keys()
        assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_a_failing_write_leaves_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        save_file(tensors, path)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("model_surgery.layout.save_file", broken)
    monkeypatch.setattr("model_surgery.layout._FLUSH_BYTES", 10_000)
    with pytest.raises(OSError, match="Input/output error"):
        convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=tmp_path)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_layout_being_replaced_is_not_complete(layout_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_surgery.layout._FLUSH_BYTES", 1)
    layout = Layout.load(layout_copy)
    writer = LayoutWriter(layout_copy, layout.shape, 1)
    assert (layout_copy / LAYOUT_FILE).is_file()
    writer.put_slices(rule_of(layout.tensors[0]), [torch.zeros(96, 32)])
    assert not (layout_copy / LAYOUT_FILE).exists()


@pytest.mark.parametrize("flush_bytes", [1, 512 << 20], ids=["many files", "one file"])
def test_a_full_disk_is_bad_input(
    flush_bytes: int, tiny_model: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_surgery.layout._FLUSH_BYTES", flush_bytes)
    (small_disk / "other").write_bytes(bytes(40_000))
    with pytest.raises(SurgeryError, match="the disk is full") as refused:
        convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=small_disk / "layout")
    assert "\n" not in str(refused.value)
    assert list((small_disk / "layout").iterdir()) == []
