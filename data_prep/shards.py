"""Megatron `.bin/.idx` shards that appear whole or not at all."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from data_prep.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT)


def partial(path: Path) -> Path:
    """The temporary name, in the same folder, under which `path` is written."""
    return path.with_name(f".{path.name}.partial")


class ShardWriter:
    """Writes documents to `prefix`.bin and `prefix`.idx, as Megatron-core's IndexedDataset reads them.

    A context manager: at its end both files are synced and named, the .bin first, so that an .idx never lacks its data.
    After an error, or with no documents (Megatron cannot map an empty file), no file stays. `digest` is the SHA-256 of
    .bin and .idx, set at the end; empty if there were no documents.

    Token ids are stored as uint16 where the vocabulary allows, else int32 (`DType.optimal_dtype`).
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        from data_prep.megatron import DType

        self.paths = (prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx"))
        self.dtype = DType.optimal_dtype(vocab_size)
        self.documents = 0
        self.tokens = 0
        self.digest = ""

    def __enter__(self) -> "ShardWriter":
        from data_prep.megatron import IndexedDatasetBuilder

        with writing(self.paths[0]):
            self._builder = IndexedDatasetBuilder(str(partial(self.paths[0])), dtype=self.dtype)
        return self

    def add(self, ids: Sequence[int]) -> None:
        """Append one document, given as all of its token ids.

        Raises: DataError if the disk is full; OverflowError if an id does not fit the stored type.
        """
        with writing(self.paths[0], self.tokens * self.dtype().itemsize):
            self._builder.add_document(ids, [len(ids)])
        self.documents += 1
        self.tokens += len(ids)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self.documents:
                self._commit()
        finally:
            with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
                self._builder.data_file.close()
            for path in self.paths:
                partial(path).unlink(missing_ok=True)

    def _commit(self) -> None:
        with writing(self.paths[0], self.tokens * self.dtype().itemsize):
            self._builder.finalize(str(partial(self.paths[1])))
            self.digest = _digest(partial(path) for path in self.paths)
            for path in self.paths:
                publish(path)


def publish(path: Path) -> None:
    """Give the finished temporary of `path` its name; it is on the disk when this returns."""
    _sync(partial(path))
    os.replace(partial(path), path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically.

    Raises: DataError if the disk is full or the folder cannot be written.
    """
    try:
        with writing(path):
            partial(path).write_text(text, encoding="utf-8")
            publish(path)
    finally:
        partial(path).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path, written: int = 0) -> Iterator[None]:
    """Turn a failure to write `path` into a DataError that names it and the bytes written and free."""
    try:
        yield
    except OSError as error:
        # numpy reports a short write without an error number
        if error.errno in FULL or "requested and" in str(error):
            free = shutil.disk_usage(path.parent).free
            raise DataError(
                f"{path}: the disk is full: {written:,} bytes written, {free:,} bytes free; "
                "free some space or choose another folder"
            ) from error
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error


@contextlib.contextmanager
def output_folder(path: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """A folder whose files that match `patterns` are a whole result or absent.

    Files of an earlier, killed run that match are removed first. On any error those of this run are removed, and the
    folders that were made for it; other files are left alone.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    _remove(path, patterns)
    try:
        yield path
    except BaseException:
        _remove(path, patterns)
        for folder in missing:
            with contextlib.suppress(OSError):  # another process may have put something there
                folder.rmdir()
        raise


def _remove(folder: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(paths: Iterator[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
