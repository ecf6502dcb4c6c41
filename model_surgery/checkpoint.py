"""Reading a Hugging Face checkpoint one tensor at a time, after checking that it is whole."""

from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from model_surgery.architectures import source_shapes
from model_surgery.errors import SurgeryError
from model_surgery.files import fingerprint_files
from model_surgery.shape import ModelShape, read_shape
from model_surgery.weights import DTYPES, stored_tensors, weight_files

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Checkpoint:
    """A Hugging Face checkpoint that is whole; a context manager.

    Raises: SurgeryError from the constructor if a tensor is missing, extra or misshapen, or a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shape: ModelShape = read_shape(folder)
        self._where = stored_tensors(folder)
        if self.shape.tied and _EMBEDDING not in self._where and _HEAD in self._where:
            # Tied weights are stored once, and safetensors keeps whichever name comes first in the state dict.
            self._where[_EMBEDDING] = self._where.pop(_HEAD)
        self._check()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._where = {}

    def nbytes(self, name: str) -> int:
        """Size of a tensor's data in bytes."""
        return self._where[name].nbytes

    def tensor(self, name: str) -> Tensor:
        """One tensor, read now.

        Raises: SurgeryError if it holds NaN or infinity.
        """
        tensor = self._where[name].read()
        if not is_finite(tensor):
            raise SurgeryError(f"{self.folder}: tensor {name} holds NaN or infinity; fetch the checkpoint again")
        return tensor

    def _check(self) -> None:
        expected = source_shapes(self.shape)
        for name in _unused_norms(self.shape):
            self._where.pop(name, None)
        for name, stored in self._where.items():
            if stored.dtype not in DTYPES:
                raise SurgeryError(
                    f"{self.folder}: tensor {name} is of dtype {stored.dtype}; supported: {', '.join(DTYPES)} "
                    "(not quantised)"
                )
        shapes = {name: stored.shape for name, stored in self._where.items()}
        has_head = self.shape.tied and shapes.pop(_HEAD, None) is not None
        differences = {"missing": expected.keys() - shapes.keys(), "unexpected": shapes.keys() - expected.keys()}
        for what, names in differences.items():
            if names:
                first = min(names)
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise SurgeryError(f"{self.folder}: {what} tensor {first}{more}; config.json and weights do not match")
        for name, size in expected.items():
            if shapes[name] != size:
                raise SurgeryError(
                    f"{self.folder}: tensor {name} has shape {list(shapes[name])}, config.json says {list(size)}"
                )
        if has_head:
            self._check_tied_head()

    def _check_tied_head(self) -> None:
        if not torch.equal(self.tensor(_HEAD), self.tensor(_EMBEDDING)):
            raise SurgeryError(
                f"{self.folder}: config.json ties {_HEAD} to the embedding, but the file holds another one; "
                "set tie_word_embeddings to false"
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite.

    Smallest and largest say it in one pass, for NaN spreads to both; `isfinite` over all takes ten times as long.
    """
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def fingerprint(folder: Path) -> str:
    """A digest of what identifies a checkpoint: config.json and samples of every weight file.

    Cheap enough to take before every run. It sees another checkpoint or a cut file, not every flipped byte: the
    digests in layout.json are over all bytes.

    Raises: SurgeryError if config.json or the weights are not there.
    """
    read_shape(folder)
    return fingerprint_files([folder / "config.json", *weight_files(folder)])


def _unused_norms(shape: ModelShape) -> set[str]:
    """Names of the norms that a published DroPE model of one norm saves beside it and does not use."""
    if {shape.q_norm, shape.k_norm} != {"full", "none"}:
        return set()
    both = shape.model_copy(update={"q_norm": "full", "k_norm": "full"})
    return source_shapes(both).keys() - source_shapes(shape).keys()
