"""The files of a checkpoint, written by a thread from a copy while training goes on."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from foundation.files import sync_file
from pipeline.recalibration.checkpoints.state import StoredFile
from pipeline.recalibration.checkpoints.zero_files import load_file

PENDING, WRITTEN, FAILED = 0.0, 1.0, 2.0
"""What a rank says of its part of the checkpoint that is being written; a number, to be exchanged with others."""


class FileWriter(CheckpointEngine):
    """What DeepSpeed saves and loads through (its `CheckpointEngine`): files with digests, and no code in any of them.

    With `asynchronous`, `save` only copies the tensors to host memory and returns; until `finish` the copy is held and
    the bytes are being written.
    """

    def __init__(self, *, asynchronous: bool, progress: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.name = "drope"
        self._progress = progress
        self._asynchronous = asynchronous
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._files: dict[str, Future[StoredFile]] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        """DeepSpeed announces a checkpoint; nothing has to be made ready."""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        content = copied(state_dict) if self._asynchronous else state_dict
        written = self._pool.submit(write_file, content, Path(path), self._progress)
        self._files[Path(path).name] = written
        if not self._asynchronous:
            written.result()

    def load(self, path: str, map_location: object = None) -> dict[str, Any]:
        return load_file(Path(path), mapped=False)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """DeepSpeed has handed over everything; whether it is on disk `status` says."""
        return True

    @property
    def status(self) -> float:
        """PENDING, WRITTEN (also if nothing is being written), or FAILED, whose reason `finish` raises."""
        if any(future.done() and future.exception() is not None for future in self._files.values()):
            return FAILED
        return WRITTEN if all(future.done() for future in self._files.values()) else PENDING

    def finish(self) -> dict[str, StoredFile]:
        """Waits until this rank's files are written and synced; what they are, by name.

        Raises: whatever writing one of them raised.
        """
        files = {name: future.result() for name, future in self._files.items()}
        self._files.clear()
        return files


def write_file(content: dict[str, Any], path: Path, progress: Callable[[], None]) -> StoredFile:
    """Writes one file by torch.save, synced to disk, its digest taken on the way."""
    with path.open("wb") as handle:
        hashing = _Hashing(handle, progress)
        torch.save(content, cast(IO[bytes], hashing))  # of which it only writes
    sync_file(path)
    return StoredFile(bytes=hashing.bytes, sha256=hashing.digest.hexdigest())


class _Hashing:
    """A file that is only appended to, as torch.save does."""

    def __init__(self, handle: BinaryIO, progress: Callable[[], None]) -> None:
        self._handle, self._progress = handle, progress
        self.digest, self.bytes = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._progress()
        self.digest.update(data)
        self.bytes += len(data)
        return self._handle.write(data)

    def flush(self) -> None:
        self._handle.flush()


def copied(value: Any, known: dict[tuple, torch.Tensor] | None = None) -> Any:
    """The same nest of dicts and lists with every tensor copied to host memory, each once."""
    known = {} if known is None else known
    if isinstance(value, torch.Tensor):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if key not in known:
            # A view would bring all of the memory that it looks into.
            known[key] = value.detach().to("cpu", copy=True)
        return known[key]
    if isinstance(value, dict):
        copies: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
        copies.update((name, copied(item, known)) for name, item in value.items())
        return copies
    if type(value) in (list, tuple):
        return type(value)(copied(item, known) for item in value)
    return value
