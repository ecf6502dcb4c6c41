"""Writing a layout: slices go into the files of their ranks while the next ones are made ready."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Unpack

import torch
from torch import Tensor

from foundation.files import atomic_path, write_json
from model_surgery.architectures import Rule, rules
from model_surgery.files import remove_files
from model_surgery.layout import LAYOUT_FILE, Entry, Layout, Origin, Piece, dtype_name
from model_surgery.partition import split
from model_surgery.shape import ModelShape, PositionEmbedding
from model_surgery.tensor_file import TensorFile

_THREADS = 4
_WAITING_BYTES = 256 << 20
_PAGE = 4096


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

    def finish(
        self,
        *,
        position_embedding: PositionEmbedding,
        trained_steps: int = 0,
        trained_tokens: int = 0,
        **origin: Unpack[Origin],
    ) -> Layout:
        """Waits until all is written, then writes layout.json as the mark of completeness."""
        with self:
            entries = tuple(put.entry(self._paths) for put in self._puts)
            layout = Layout(
                shape=self.shape,
                tensor_parallel=self.tensor_parallel,
                position_embedding=position_embedding,
                trained_steps=trained_steps,
                trained_tokens=trained_tokens,
                tensors=entries,
                **origin,
            )
            for file in self._files:
                file.write_header()
            # From here on the files of an earlier layout are replaced, so it is complete no more.
            (self.folder / LAYOUT_FILE).unlink(missing_ok=True)
            try:
                self._temporaries.close()
                write_json(self.folder / LAYOUT_FILE, layout.model_dump(mode="json"))
            except BaseException:
                remove_files(self._paths)
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
