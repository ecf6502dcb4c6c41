"""Atomic writes and digests of files."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.errors import EvaluationError

_SAMPLED_ABOVE = 64 * 2**20
_BLOCK = 64 * 2**10
_BLOCKS = 256


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a user can mend (full disk, unwritable path) into an EvaluationError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "free some space and run again, finished units are kept"
            raise EvaluationError(f"{path}: the disk is full; {way_out}") from None
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError):
            raise EvaluationError(f"{path}: cannot write there ({error.strerror}); choose another folder") from None
        raise


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the whole new one; no temporary file stays behind.

    Raises: EvaluationError where the disk is full or the folder not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def digest_text(text: str) -> str:
    """SHA-256 of `text`, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_files(paths: list[Path]) -> str:
    """SHA-256 over names and contents of files.

    Of a file above 64 MiB (weights, token shards) its size and 256 blocks spread evenly are taken: training moves every
    weight, so a changed model is seen without reading many gigabytes.
    """
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        size = path.stat().st_size
        total.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _SAMPLED_ABOVE:
                while block := stream.read(2**20):
                    total.update(block)
                continue
            for index in range(_BLOCKS):
                stream.seek(index * (size - _BLOCK) // (_BLOCKS - 1))
                total.update(stream.read(_BLOCK))
    return total.hexdigest()
