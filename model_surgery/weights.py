"""The weight files of a Hugging Face checkpoint, safetensors or torch's own, read one tensor at a time.

Every read maps its file anew and lets go of it with the tensor: pages of a mapping that stays open count as resident
memory until the last tensor is read.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_surgery.errors import SurgeryError
from model_surgery.files import read_json

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""safetensors' names of the dtypes that are taken."""

_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""A single file and the index of many, in transformers' order of preference."""

_ROTARY = "rotary_emb.inv_freq"
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, and what its file says of it. `dtype` is a key of `DTYPES` if it is one that is taken."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes; its dtype must be one of `DTYPES`."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def read(self) -> Tensor:
        """The tensor, mapped from its file.

        Raises: SurgeryError if the file can no longer be read.
        """
        if self.path.suffix == ".safetensors":
            with _safetensors(self.path) as handle:
                return handle.get_tensor(self.name)
        return _load_pickle(self.path)[self.name]


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, sorted; the same ones that transformers would take.

    Files that the index does not name are passed over. Symbolic links are followed: the Hub's cache is made of them.

    Raises: SurgeryError if there are none, or the index names one that is not there or lies outside the folder.
    """
    for single, index in _FILES:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / name for name in sorted(set(_weight_map(folder / index).values()))]
    known = ", ".join(name for names in _FILES for name in names)
    raise SurgeryError(f"{folder}: holds none of {known}; convert the weights to safetensors")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by name, but the rotary buffers that old transformers versions saved.

    Raises: SurgeryError if a file cannot be read, holds a tensor that another one holds too, or disagrees with the
    index.
    """
    paths = weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        for tensor in _contents(path):
            if not tensor.name.isprintable():
                raise SurgeryError(f"{path}: holds a tensor named {tensor.name!r}; fetch it again")
            if tensor.name in tensors:
                raise SurgeryError(f"{path}: tensor {tensor.name} is in another file too; fetch the checkpoint again")
            tensors[tensor.name] = tensor
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(_ROTARY)}
    for single, index in _FILES:
        if paths[0].suffix == Path(single).suffix and paths != [folder / single]:
            _check_index(folder / index, tensors)
    return tensors


def _check_index(path: Path, tensors: dict[str, StoredTensor]) -> None:
    """Raises: SurgeryError if the index has a tensor elsewhere than it is, or not at all, or one that is nowhere."""
    indexed = {name: file for name, file in _weight_map(path).items() if not name.endswith(_ROTARY)}
    stored = {name: tensor.path.name for name, tensor in tensors.items()}
    for name in sorted(indexed.keys() | stored.keys()):
        if indexed.get(name) != stored.get(name):
            raise SurgeryError(
                f"{path}: has tensor {name!r} in {indexed.get(name, 'no file')}, but it is in "
                f"{stored.get(name, 'none of the files')}; fetch the checkpoint again"
            )


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> name of a file beside the index.

    Raises: SurgeryError if there is no such map, or a file is not there or lies elsewhere.
    """
    index = read_json(path)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or "metadata" not in index:  # transformers loads none without metadata
        raise SurgeryError(f"{path}: holds no weight_map or no metadata; fetch it again")
    for name in sorted({str(name) for name in names.values()}):
        if Path(name).name != name or not name.isprintable():
            raise SurgeryError(f"{path}: names {name!r}, which is not a file of this folder")
        if not (path.parent / name).is_file():
            raise SurgeryError(f"{path.parent / name}: no such file, though {path.name} names it")
    return {tensor: str(name) for tensor, name in names.items()}


def _contents(path: Path) -> Iterator[StoredTensor]:
    """What a file holds, from its header alone."""
    if path.suffix == ".safetensors":
        with _safetensors(path) as handle:
            for name in handle.keys():  # noqa: SIM118 (a handle is not a dict)
                entry = handle.get_slice(name)
                yield StoredTensor(path, name, entry.get_dtype(), tuple(entry.get_shape()))
        return
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, tensor in _load_pickle(path).items():
        dtype = names.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
        yield StoredTensor(path, name, dtype, tuple(tensor.shape))


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:  # safetensors does not export the type of what safe_open returns
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise SurgeryError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


def _load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save, mapped and not yet read; no code in it is run.

    Raises: SurgeryError if it is damaged, holds anything but dense tensors by name, or is of a torch before 1.6, whose
    files cannot be mapped.
    """
    way_out = "fetch the checkpoint as safetensors"
    try:
        with path.open("rb") as handle:
            is_zip = handle.read(len(_ZIP)) == _ZIP
        tensors: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if is_zip else None
    except UnpicklingError as error:
        raise SurgeryError(f"{path}: holds more than tensors, maybe code, and is not loaded; {way_out}") from error
    except Exception as error:  # a damaged pickle can end in an error of any class
        reason = " ".join(str(error).split())[:100]
        raise SurgeryError(f"{path}: not a readable file of torch.save ({reason}); {way_out}") from error
    if not is_zip:
        raise SurgeryError(f"{path}: not a file of torch.save since torch 1.6 (a zip); {way_out}")
    if not isinstance(tensors, dict):
        raise SurgeryError(f"{path}: holds a {type(tensors).__name__}, not tensors by name; {way_out}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise SurgeryError(f"{path}: what it holds as {name!r} is not a dense tensor; {way_out}")
    return {name: tensor.detach() for name, tensor in tensors.items()}
