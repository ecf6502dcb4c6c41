"""The PE-free tensor-parallel layout on disk: safetensors per TP rank beside a layout.json that describes them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_surgery.architectures import Join
from model_surgery.errors import SurgeryError
from model_surgery.files import remove_files
from model_surgery.partition import unjoin, unsplit
from model_surgery.shape import ModelShape, PositionEmbedding
from model_surgery.tensor_file import tensor_bytes

LAYOUT_FILE = "layout.json"
InitialNorms = Literal["ones", "calibrated"]
"""How the weights of norms of queries and keys began that surgery put in."""


class Origin(TypedDict):
    """What whatever is made from a layout takes over from it."""

    source: str
    source_fingerprint: str
    source_position_embedding: NotRequired[PositionEmbedding]
    inserted_norms: NotRequired[InitialNorms | None]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Piece(_Frozen):
    """One TP rank's slice of a tensor."""

    file: str = Field(pattern=r"^[\w-][\w.-]*$")  # a file of the layout's folder, never a path out of it
    shape: tuple[int, ...]
    sha256: str


class Entry(_Frozen):
    """One Megatron tensor of the layout: where it came from, how it is cut, and one piece per TP rank."""

    target: str
    sources: tuple[str, ...]
    join: Join
    dtype: str
    pieces: tuple[Piece, ...]


class Layout(_Frozen):
    """What layout.json says. `position_embedding` is what the model that these weights are for has."""

    schema_version: Literal[2] = 2
    shape: ModelShape
    tensor_parallel: int = Field(ge=1)
    position_embedding: PositionEmbedding
    source: str
    source_fingerprint: str
    source_position_embedding: PositionEmbedding = "rope"
    inserted_norms: InitialNorms | None = None
    """None where surgery put no norms in."""
    trained_steps: int = 0
    trained_tokens: int = 0
    tensors: tuple[Entry, ...]

    @model_validator(mode="after")
    def _one_piece_per_rank(self) -> "Layout":
        for entry in self.tensors:
            if len(entry.pieces) != self.tensor_parallel:
                raise ValueError(f"{entry.target} has {len(entry.pieces)} pieces for TP {self.tensor_parallel}")
        return self

    @staticmethod
    def load(folder: Path) -> "Layout":
        """Reads layout.json.

        Raises: SurgeryError if it is missing or not valid.
        """
        path = folder / LAYOUT_FILE
        if not path.is_file():
            raise SurgeryError(f"{path}: no such file; is the surgery stage complete?")
        try:
            return Layout.model_validate_json(path.read_bytes())
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "the whole"
            raise SurgeryError(f"{path}: not a layout: {where}: {problem['msg']}; run the stage again") from error

    @property
    def origin(self) -> Origin:
        """What a layout that is made from this one says of its source."""
        return Origin(
            source=self.source,
            source_fingerprint=self.source_fingerprint,
            source_position_embedding=self.source_position_embedding,
            inserted_norms=self.inserted_norms,
        )

    def digest(self) -> str:
        """sha256 over shapes, cuts and the digests of all pieces: equal if and only if all slices are equal."""
        described = [entry.model_dump(mode="json", exclude={"pieces": {"__all__": {"file"}}}) for entry in self.tensors]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as layout.json has it."""
    return str(dtype).removeprefix("torch.")


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of the tensor's bytes in C order."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def read_rank(folder: Path, layout: Layout, rank: int) -> dict[str, Tensor]:
    """All slices of one TP rank by Megatron name: a state dict for the model of that rank.

    Raises: SurgeryError if a file is missing or unreadable, or a slice does not have its digest.
    """
    return {entry.target: _intact(piece, entry, rank, folder) for entry, piece in _stored(folder, layout, rank)}


def read_slice(folder: Path, entry: Entry, rank: int) -> Tensor:
    """One TP rank's slice of one layout tensor.

    Raises: SurgeryError if its file is missing or unreadable, or it does not have its digest.
    """
    with open_pieces(folder / entry.pieces[rank].file) as handle:
        return _intact(_read(handle, entry, rank, folder), entry, rank, folder)


def read_joined(folder: Path, layout: Layout, entry: Entry) -> Tensor:
    """One layout tensor put together again from all ranks, without padding: what `partition.split` cut.

    Raises: SurgeryError if a file is missing or unreadable, a slice does not have its digest, or its padding is not 0.
    """
    slices = [read_slice(folder, entry, rank) for rank in range(layout.tensor_parallel)]
    try:
        return unsplit(slices, entry.join, layout.shape)
    except SurgeryError as error:
        raise SurgeryError(f"{folder}: {entry.target}: {error}") from error


def read_sources(folder: Path, layout: Layout, entry: Entry) -> dict[str, Tensor]:
    """The Hugging Face tensors that one layout tensor was made of, put together again from all ranks.

    Raises: SurgeryError as `read_joined`.
    """
    joined = read_joined(folder, layout, entry)
    return dict(zip(entry.sources, unjoin(joined, entry.join, layout.shape), strict=True))


def damaged_tensors(folder: Path, layout: Layout) -> list[str]:
    """Names (with rank) of the tensors whose bytes no longer have the digest in layout.json.

    Raises: SurgeryError if a file is missing or unreadable as a whole, or has a tensor not at all or in another shape.
    """
    damaged = []
    for rank in range(layout.tensor_parallel):
        for entry in layout.tensors:
            # Opened for each alone, so that the pages of those that were read do not stay in memory.
            with open_pieces(folder / entry.pieces[rank].file) as handle:
                if tensor_digest(_read(handle, entry, rank, folder)) != entry.pieces[rank].sha256:
                    damaged.append(f"{entry.target} (TP rank {rank})")
    return damaged


def remove_layout(folder: Path, layout: Layout) -> None:
    """Deletes the files of a layout, its mark of completeness first."""
    remove_files([folder / LAYOUT_FILE, *(folder / piece.file for entry in layout.tensors for piece in entry.pieces)])


def open_pieces(path: Path) -> Any:  # safetensors does not export the type of what safe_open returns
    """An open safetensors file of a layout.

    Raises: SurgeryError if it is missing or unreadable.
    """
    if not path.is_file():
        raise SurgeryError(f"{path}: no such file, though {LAYOUT_FILE} names it; run the stage again")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise SurgeryError(f"{path}: not a readable safetensors file ({error}); run the stage again") from error


def _stored(folder: Path, layout: Layout, rank: int) -> Iterator[tuple[Entry, Tensor]]:
    """Every slice of a rank, one at a time, file by file."""
    for file in sorted({entry.pieces[rank].file for entry in layout.tensors}):
        with open_pieces(folder / file) as handle:
            for entry in layout.tensors:
                if entry.pieces[rank].file == file:
                    yield entry, _read(handle, entry, rank, folder)


def _read(handle: Any, entry: Entry, rank: int, folder: Path) -> Tensor:
    piece = entry.pieces[rank]
    try:
        tensor = handle.get_tensor(entry.target)
    except SafetensorError as error:
        raise SurgeryError(
            f"{folder / piece.file}: {entry.target} cannot be read ({error}); run the stage again"
        ) from error
    dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
    if (dtype, shape) != (entry.dtype, piece.shape):
        raise SurgeryError(
            f"{folder / piece.file}: {entry.target} is {dtype} {list(shape)}, {LAYOUT_FILE} says {entry.dtype} "
            f"{list(piece.shape)}; run the stage again"
        )
    return tensor


def _intact(tensor: Tensor, entry: Entry, rank: int, folder: Path) -> Tensor:
    piece = entry.pieces[rank]
    if tensor_digest(tensor) != piece.sha256:
        raise SurgeryError(
            f"{folder / piece.file}: {entry.target} is damaged: its bytes are not those that {LAYOUT_FILE} has the "
            "digest of; run the stage again"
        )
    return tensor
