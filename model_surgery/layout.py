"""The PE-free tensor-parallel layout on disk: safetensors per TP rank beside a layout.json that describes them."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_surgery.architectures import Join, Rule, rules
from model_surgery.errors import SurgeryError
from model_surgery.files import atomic_path, write_json
from model_surgery.partition import split, unjoin, unsplit
from model_surgery.shape import ModelShape
from model_surgery.tensor_file import TensorFile, tensor_bytes

LAYOUT_FILE = "layout.json"
_THREADS = 4
_WAITING_BYTES = 256 << 20
_PAGE = 4096


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
    position_embedding: Literal["none", "rope"]
    source: str
    source_fingerprint: str
    source_position_embedding: Literal["none", "rope"] = "rope"
    inserted_norms: Literal["ones", "calibrated"] | None = None
    """How the weights of the norms of queries and keys began that surgery put in; None where it put none in."""
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
    def origin(self) -> dict[str, Any]:
        """What a layout that is made from this one says of its source."""
        names = ("source", "source_fingerprint", "source_position_embedding", "inserted_norms")
        return {name: getattr(self, name) for name in names}

    def digest(self) -> str:
        """sha256 over shapes, cuts and the digests of all pieces: equal if and only if all slices are equal."""
        described = [entry.model_dump(mode="json", exclude={"pieces": {"__all__": {"file"}}}) for entry in self.tensors]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


class LayoutWriter:
    """Writes a layout tensor by tensor, in one file per TP rank, while its caller makes the next one ready.

    A few threads digest and write; at most about 256 MiB wait for them. Files do not depend on their number. A slice
    that was given must not be changed afterwards.

    As a context manager it leaves nothing behind unless `finish` has succeeded. Until then files have temporary names,
    and an earlier layout in the folder stays as it is.
    """

    def __init__(self, folder: Path, shape: ModelShape, tensor_parallel: int) -> None:
        self.folder, self.shape, self.tensor_parallel = folder, shape, tensor_parallel
        self._paths = [folder / f"tp{rank:02d}-0000.safetensors" for rank in range(tensor_parallel)]
        self._files: list[TensorFile] = []
        self._temporaries = ExitStack()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="layout-writer")
        self._waiting: deque[tuple[Future[str], int]] = deque()
        self._waiting_bytes = 0
        self._puts: list[_Put] = []
        self._finished = False

    def __enter__(self) -> "LayoutWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if not self._finished:
            error = error or RuntimeError("LayoutWriter.finish was not called")
            self._temporaries.__exit__(type(error), error, error.__traceback__)

    def put(self, rule: Rule, joined: Tensor) -> None:
        """Cuts a joined tensor and takes every rank's slice."""
        slices = split(joined, rule.join, self.shape, self.tensor_parallel)
        self.put_slices(rule, slices)

    def put_slices(self, rule: Rule, slices: list[Tensor]) -> None:
        """Takes slices that are cut already, one per rank.

        Raises: whatever the writing of an earlier slice raised.
        """
        if not self._files:
            self._open_files()
        digests = []
        for file, piece in zip(self._files, slices, strict=True):
            digests.append(self._pool.submit(file.fill, file.reserve(rule.target, piece), piece))
            self._waiting.append((digests[-1], piece.nbytes))
            self._waiting_bytes += piece.nbytes
        self._puts.append(_Put(rule, slices[0].dtype, [tuple(piece.shape) for piece in slices], digests))
        while self._waiting_bytes > _WAITING_BYTES:
            written, size = self._waiting.popleft()
            written.result()
            self._waiting_bytes -= size

    def finish(self, **facts: object) -> Layout:
        """Waits until all is written, then writes layout.json as the mark of completeness."""
        with self:
            entries = tuple(put.entry(self._paths) for put in self._puts)
            layout = Layout(shape=self.shape, tensor_parallel=self.tensor_parallel, tensors=entries, **facts)
            for file in self._files:
                file.write_header()
            # From here on the files of an earlier layout are replaced, so it is complete no more.
            (self.folder / LAYOUT_FILE).unlink(missing_ok=True)
            try:
                self._temporaries.close()
                write_json(self.folder / LAYOUT_FILE, layout.model_dump(mode="json"))
            except BaseException:
                _remove(self._paths)
                raise
            self._finished = True
        return layout

    def _open_files(self) -> None:
        room = _header_bytes(self.shape)
        for path in self._paths:
            file = TensorFile(self._temporaries.enter_context(atomic_path(path)), room)
            self._temporaries.callback(file.close)
            self._files.append(file)


@dataclass(frozen=True)
class _Put:
    """A tensor that a writer took; its digests are there when it is written."""

    rule: Rule
    dtype: torch.dtype
    shapes: list[tuple[int, ...]]
    digests: list[Future[str]]

    def entry(self, paths: list[Path]) -> Entry:
        """What layout.json says of it, as soon as it is written."""
        return Entry(
            target=self.rule.target,
            sources=self.rule.sources,
            join=self.rule.join,
            dtype=dtype_name(self.dtype),
            pieces=tuple(
                Piece(file=path.name, shape=shape, sha256=digest.result())
                for path, shape, digest in zip(paths, self.shapes, self.digests, strict=True)
            ),
        )


def _header_bytes(shape: ModelShape) -> int:
    """Room for the header of a file with a slice of every tensor: 128 bytes each beside the name, and whole pages."""
    needed = 8 + sum(len(rule.target) + 128 for rule in rules(shape))
    return -(-needed // _PAGE) * _PAGE - 8


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
    _remove([folder / LAYOUT_FILE, *(folder / piece.file for entry in layout.tensors for piece in entry.pieces)])


def open_pieces(path: Path):  # safetensors does not export the type of what safe_open returns
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
    found, wanted = (dtype_name(tensor.dtype), tuple(tensor.shape)), (entry.dtype, piece.shape)
    if found != wanted:
        raise SurgeryError(
            f"{folder / piece.file}: {entry.target} is {found[0]} {list(found[1])}, {LAYOUT_FILE} says {wanted[0]} "
            f"{list(wanted[1])}; run the stage again"
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


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
