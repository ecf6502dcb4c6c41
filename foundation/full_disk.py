"""Recognising a full disk behind whatever error a library makes of it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation.errors import DiskError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK_BYTES = 1 << 20
DEFAULT_WAY_OUT = "free space there or choose another folder"


def is_full_disk(error: BaseException) -> bool:
    """Whether the operating system's "no space left" or "quota exceeded" stands in an error or in one that led to it.

    safetensors carries it in its text alone, and numpy reports a short write without an error number.
    """
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if getattr(cause, "errno", None) in _FULL or any(os.strerror(number) in text for number in _FULL):
            return True
        if isinstance(cause, OSError) and "requested and" in text and "written" in text:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def explained_full_disk(
    path: Path, way_out: str = DEFAULT_WAY_OUT, *, by_free_space: bool = False, written: int | None = None
) -> Iterator[None]:
    """Turns an error that a full disk has caused into one clear line about `path`.

    written: bytes of `path` written before, where they are known; then the line tells them and the bytes free.

    by_free_space: also an error that says nothing of the disk counts, where less than 1 MiB is free there: torch's zip
    writer reports a RuntimeError, a killed worker an exit code. For blocks whose own bad input passes by unchanged,
    which ValueErrors do.

    Raises: DiskError.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        is_own_word = isinstance(error, ValueError)
        looks_full = by_free_space and not is_own_word and free_bytes(path) < _FULL_DISK_BYTES
        if is_full_disk(error) or looks_full:
            sizes = "" if written is None else f": {written:,} bytes written, {free_bytes(path):,} bytes free"
            raise DiskError(f"{path}: the disk is full{sizes}; {way_out}") from error
        raise


def free_bytes(path: Path) -> int:
    """Bytes free where `path` lies, or will lie."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
