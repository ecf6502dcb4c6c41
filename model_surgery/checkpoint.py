"""Reading a Hugging Face checkpoint from safetensors, one tensor at a time, after checking that it is whole."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_surgery.architectures import source_shapes
from model_surgery.errors import SurgeryError
from model_surgery.files import fingerprint_files, read_json
from model_surgery.shape import ModelShape, read_shape

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = ("F32", "BF16", "F16")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Checkpoint:
    """An open Hugging Face checkpoint; a context manager.

    Raises: SurgeryError from the constructor if a tensor is missing, extra or misshapen, or a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shape: ModelShape = read_shape(folder)
        self._files = ExitStack()
        self._where: dict[str, tuple[Any, str]] = {}
        try:
            for path in weight_files(folder):
                handle = self._files.enter_context(_open(path))
                names = set(handle.keys())
                if twice := names & self._where.keys():
                    raise SurgeryError(
                        f"{path}: tensor {min(twice)} is in another file too; fetch the checkpoint again"
                    )
                self._where |= {name: (handle, name) for name in names}
            if self.shape.tied and _EMBEDDING not in self._where and _HEAD in self._where:
                # Tied weights are stored once, and safetensors keeps whichever name comes first in the state dict.
                self._where[_EMBEDDING] = self._where.pop(_HEAD)
            self._check()
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def tensor(self, name: str) -> Tensor:
        """One tensor, read now.

        Raises: SurgeryError if it holds NaN or infinity.
        """
        handle, stored_name = self._where[name]
        tensor = handle.get_tensor(stored_name)
        if not torch.isfinite(tensor).all():
            raise SurgeryError(f"{self.folder}: tensor {name} holds NaN or infinity; fetch the checkpoint again")
        return tensor

    def _check(self) -> None:
        wanted = source_shapes(self.shape)
        for name, (handle, stored_name) in self._where.items():
            if (dtype := handle.get_slice(stored_name).get_dtype()) not in _DTYPES:
                raise SurgeryError(
                    f"{self.folder}: tensor {name} is of dtype {dtype}; supported: {', '.join(_DTYPES)} (not quantised)"
                )
        found = {
            name: tuple(handle.get_slice(stored_name).get_shape())
            for name, (handle, stored_name) in self._where.items()
            if not name.endswith("rotary_emb.inv_freq")  # a buffer that old transformers versions saved
        }
        if self.shape.tied and found.pop(_HEAD, None) is not None:
            self._check_tied_head()
        for what, names in (("missing", wanted.keys() - found.keys()), ("unexpected", found.keys() - wanted.keys())):
            if names:
                first = min(names)
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise SurgeryError(f"{self.folder}: {what} tensor {first}{more}; config.json and weights do not match")
        for name, size in wanted.items():
            if found[name] != size:
                raise SurgeryError(
                    f"{self.folder}: tensor {name} has shape {list(found[name])}, config.json says {list(size)}"
                )

    def _check_tied_head(self) -> None:
        if not torch.equal(self.tensor(_HEAD), self.tensor(_EMBEDDING)):
            raise SurgeryError(
                f"{self.folder}: config.json ties {_HEAD} to the embedding, but the file holds another one; "
                "set tie_word_embeddings to false"
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted; the single file where both are there, as transformers has it.

    Raises: SurgeryError if there are none, or the index names one that is not there or lies outside the folder.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        raise SurgeryError(f"{folder}: holds neither {_SINGLE} nor {_INDEX}; convert the weights to safetensors")
    try:
        names = sorted({str(name) for name in read_json(folder / _INDEX)["weight_map"].values()})
    except (KeyError, AttributeError) as error:
        raise SurgeryError(f"{folder / _INDEX}: holds no weight_map; fetch it again") from error
    for name in names:
        if Path(name).name != name:
            raise SurgeryError(f"{folder / _INDEX}: names {name!r}, which is not a file of this folder")
        if not (folder / name).is_file():
            raise SurgeryError(f"{folder / name}: no such file, though {_INDEX} names it")
    return [folder / name for name in names]


def fingerprint(folder: Path) -> str:
    """A digest of what identifies a checkpoint: config.json and samples of every weight file.

    Cheap enough to take before every run. It sees another checkpoint or a cut file, not every flipped byte: the
    digests in layout.json are over all bytes.

    Raises: SurgeryError if config.json or the weights are not there.
    """
    read_shape(folder)
    return fingerprint_files([folder / "config.json", *weight_files(folder)])


def _open(path: Path):  # safetensors does not export the type of what safe_open returns
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise SurgeryError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error
