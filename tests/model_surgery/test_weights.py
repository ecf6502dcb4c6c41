"""Weight files of both formats are read; damaged, misleading and dangerous ones are refused in one line."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_surgery.checkpoint import Checkpoint, is_finite
from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.errors import SurgeryError
from model_surgery.weights import stored_tensors, weight_files

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
NORM = "model.norm.weight"


def refusal(folder: Path, tmp_path: Path) -> str:
    """The line that refuses a checkpoint, after which nothing is left."""
    out = tmp_path / "out"
    with pytest.raises(SurgeryError) as refused:
        convert(SurgeryConfig(), source=folder, out_dir=out)
    assert "\n" not in str(refused.value)
    assert not out.exists() or list(out.iterdir()) == []
    return str(refused.value)


@pytest.fixture
def bare(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model's config.json alone."""
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(tiny_model / "config.json", folder)
    return folder


@pytest.fixture
def tensors(tiny_model: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny_model / SINGLE)


@pytest.fixture
def sharded(bare: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """The tiny model in two safetensors files with an index."""
    write_shards(bare, tensors, "model-0000{}-of-00002.safetensors", INDEX, save_file)
    return bare


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], file: str, index: str, save: Callable) -> None:
    weight_map = {name: file.format(1 + number % 2) for number, name in enumerate(tensors)}
    for number in (1, 2):
        save({n: t for n, t in tensors.items() if weight_map[n] == file.format(number)}, folder / file.format(number))
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def change_index(folder: Path, **files: str | None) -> None:
    index = json.loads((folder / INDEX).read_text())
    changed = index["weight_map"] | {name.replace("__", "."): file for name, file in files.items()}
    index["weight_map"] = {name: file for name, file in changed.items() if file}
    (folder / INDEX).write_text(json.dumps(index))


def header(entries: dict[str, object] | bytes, data: bytes) -> bytes:
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(content).to_bytes(8, "little") + content + data


def entry(begin: int, end: int, shape: tuple[int, ...] = (3,), dtype: str = "F16") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DAMAGED = {
    "no bytes": b"",
    "length of the header alone": (100).to_bytes(8, "little"),
    "header cut": header({"a": entry(0, 6)}, b"")[:-3],
    "data cut": header({"a": entry(0, 6)}, bytes(5)),
    "no data": header({"a": entry(0, 6)}, b""),
    "data too long": header({"a": entry(0, 6)}, bytes(7)),
    "header longer than any": (1 << 60).to_bytes(8, "little") + b"{}",
    "not JSON": header(b"{", b""),
    "not UTF-8": header(b"\xff\xfe", b""),
    "negative offset": header({"a": entry(-6, 0)}, bytes(6)),
    "ends before it begins": header({"a": entry(6, 0)}, bytes(6)),
    "overlapping": header({"a": entry(0, 6), "b": entry(4, 10)}, bytes(10)),
    "the same bytes twice": header({"a": entry(0, 6), "b": entry(0, 6)}, bytes(6)),
    "a gap": header({"a": entry(2, 8)}, bytes(8)),
    "shape and size differ": header({"a": entry(0, 6, (4,))}, bytes(6)),
    "a shape beyond all numbers": header({"a": entry(0, 6, (1 << 62, 1 << 62))}, bytes(6)),
    "a dtype that is none": header({"a": entry(0, 6, dtype="X9")}, bytes(6)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_safetensors_are_refused(name: str, bare: Path, tmp_path: Path) -> None:
    (bare / SINGLE).write_bytes(DAMAGED[name])
    assert f"{SINGLE}: not a readable safetensors file" in refusal(bare, tmp_path)


def test_a_tensor_name_that_would_break_the_line_is_refused(bare: Path, tmp_path: Path) -> None:
    (bare / SINGLE).write_bytes(header({"a\nb": entry(0, 6)}, bytes(6)))
    assert "holds a tensor named 'a\\nb'" in refusal(bare, tmp_path)


def test_an_index_that_disagrees_with_the_files_is_refused(sharded: Path, tmp_path: Path) -> None:
    there = stored_tensors(sharded)[NORM].path.name
    other = next(path.name for path in weight_files(sharded) if path.name != there)
    change_index(sharded, model__norm__weight=other)
    assert f"has tensor '{NORM}' in {other}, but it is in {there};" in refusal(sharded, tmp_path)
    change_index(sharded, model__norm__weight=None)
    assert f"has tensor '{NORM}' in no file, but it is in {there};" in refusal(sharded, tmp_path)
    change_index(sharded, model__norm__weight=there, nothing=other)
    assert f"has tensor 'nothing' in {other}, but it is in none of the files;" in refusal(sharded, tmp_path)
    change_index(sharded, nothing=None)
    stored_tensors(sharded)
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = other  # of old versions, and not looked for
    (sharded / INDEX).write_text(json.dumps(index))
    stored_tensors(sharded)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not valid JSON (Expecting value"),
        ("[]", "holds a JSON list, not an object"),
        ("{}", "holds no weight_map or no metadata; fetch it again"),
        ('{"weight_map": {}}', "holds no weight_map or no metadata; fetch it again"),
        ('{"weight_map": {"a": "b"}}', "holds no weight_map or no metadata; fetch it again"),
    ],
)
def test_an_index_that_is_none_is_refused(content: str, reason: str, sharded: Path, tmp_path: Path) -> None:
    (sharded / INDEX).write_text(content)
    assert f"/{INDEX}: {reason}" in refusal(sharded, tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, f"{INDEX}: names {name!r}, which is not a file") for name in ("/etc/hostname", "../a", ".", "a/b")),
        ("a\nb", f"{INDEX}: names 'a\\nb', which is not a file"),
        *((name, f": no such file, though {INDEX} names it") for name in ("..", "")),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(name: str, reason: str, sharded: Path, tmp_path: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][NORM] = name
    (sharded / INDEX).write_text(json.dumps(index))
    assert reason in refusal(sharded, tmp_path)


def test_links_are_followed_as_the_hub_cache_has_them(sharded: Path, tensors: dict, tmp_path: Path) -> None:
    path = weight_files(sharded)[0]
    (tmp_path / "blobs").mkdir()
    shutil.move(path, tmp_path / "blobs" / "0123")
    path.symlink_to(os.path.relpath(tmp_path / "blobs" / "0123", path.parent))
    with Checkpoint(sharded) as checkpoint:
        assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())
    (tmp_path / "blobs" / "0123").unlink()
    assert f"{path.name}: no such file, though" in refusal(sharded, tmp_path)


def test_files_that_the_index_does_not_name_are_passed_over(sharded: Path, tensors: dict) -> None:
    (sharded / "model-00003-of-00003.safetensors").write_bytes(b"of another download")
    (sharded / "consolidated.safetensors").write_bytes(b"in another format")
    assert stored_tensors(sharded).keys() == tensors.keys()


@pytest.mark.parametrize("in_shards", [False, True])
def test_torch_files_are_read_as_transformers_reads_them(
    in_shards: bool, bare: Path, tensors: dict, tiny_model: Path, tmp_path: Path
) -> None:
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    if in_shards:
        write_shards(bare, tensors | old, "pytorch_model-0000{}-of-00002.bin", BIN_INDEX, torch.save)
    else:
        torch.save(tensors | old, bare / BIN)
    loaded = AutoModelForCausalLM.from_pretrained(bare).state_dict()
    with Checkpoint(bare) as checkpoint:
        assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in loaded.items())
    expected = convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=tmp_path / "expected")
    assert (
        convert(SurgeryConfig(tensor_parallel=2), source=bare, out_dir=tmp_path / "got").digest() == expected.digest()
    )


def test_torch_files_of_views_and_parameters(bare: Path, tensors: dict) -> None:
    """Transposed, shared and trainable tensors, as state dicts have them."""
    turned = {n: t.T.contiguous().T if t.ndim == 2 else torch.nn.Parameter(t) for n, t in tensors.items()}
    torch.save(turned, bare / BIN)
    with Checkpoint(bare) as checkpoint:
        assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())
        assert not checkpoint.tensor(NORM).requires_grad


def test_safetensors_go_before_torch_files(sharded: Path) -> None:
    (sharded / BIN).write_bytes(b"not looked at")
    assert [path.suffix for path in weight_files(sharded)] == [".safetensors"] * 2


class Code:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code in a weight file was run')",)


NOT_TAKEN: dict[str, tuple[object, str]] = {
    "code": ({NORM: Code()}, "holds more than tensors, maybe code, and is not loaded"),
    "a list": ([torch.ones(1)], "holds a list, not tensors by name"),
    "state in state": ({"model": {NORM: torch.ones(1)}}, "what it holds as 'model' is not a dense tensor"),
    "a number as name": ({1: torch.ones(1)}, "what it holds as 1 is not a dense tensor"),
    "a sparse tensor": ({NORM: torch.eye(2).to_sparse()}, f"what it holds as '{NORM}' is not a dense tensor"),
    "whole numbers": ({NORM: torch.ones(32, dtype=torch.int8)}, "is of dtype int8; supported: F32, BF16, F16"),
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_torch_files_of_anything_but_tensors_are_refused(name: str, bare: Path, tmp_path: Path) -> None:
    content, line = NOT_TAKEN[name]
    torch.save(content, bare / BIN)
    assert line in refusal(bare, tmp_path)


def test_torch_files_that_cannot_be_mapped_are_refused(bare: Path, tensors: dict, tmp_path: Path) -> None:
    for content in ({NORM: Code()}, tensors):
        torch.save(content, bare / BIN, _use_new_zipfile_serialization=False)
        assert "not a file of torch.save since torch 1.6 (a zip)" in refusal(bare, tmp_path)
    for content in (b"", b"PK"):
        (bare / BIN).write_bytes(content)
        assert "not a file of torch.save since torch 1.6 (a zip)" in refusal(bare, tmp_path)


def test_damaged_torch_files_are_refused(bare: Path, tensors: dict, tmp_path: Path) -> None:
    torch.save(tensors, bare / BIN)
    whole = (bare / BIN).read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], whole[:4]):
        (bare / BIN).write_bytes(content)
        assert f"{BIN}: not a readable file of torch.save" in refusal(bare, tmp_path)


def test_nan_and_missing_tensors_in_torch_files_are_named(bare: Path, tensors: dict, tmp_path: Path) -> None:
    torch.save({name: tensor for name, tensor in tensors.items() if name != NORM}, bare / BIN)
    assert f"missing tensor {NORM};" in refusal(bare, tmp_path)
    torch.save(tensors | {NORM: torch.full((32,), torch.nan)}, bare / BIN)
    assert f"tensor {NORM} holds NaN or infinity" in refusal(bare, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_none_is_seen_anywhere(dtype: torch.dtype, value: float) -> None:
    largest = torch.finfo(dtype).max
    for length in (1, 7, 16, 33, 257, 70_001):  # around the widths of vector instructions, and for several threads
        tensor = torch.randn(length).to(dtype)
        tensor[0] = largest
        assert is_finite(tensor)
        for place in {0, length // 3, length // 2, length - 1}:
            changed = tensor.clone()
            changed[place] = value
            assert not is_finite(changed)
    assert is_finite(torch.empty(0, dtype=dtype))
