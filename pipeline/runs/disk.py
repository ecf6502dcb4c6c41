"""Recognising a full disk behind whatever error it came as."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import BAD_INPUT, RecipeError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK_BYTES = 1 << 20


@contextmanager
def explained_full_disk(folder: Path) -> Iterator[None]:
    """Turns any error that a full disk has caused into one clear line.

    Libraries report a full disk in many ways (torch's zip writer as a RuntimeError, a killed worker as an exit code),
    so beside the error number the free space is looked at.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, BAD_INPUT):
            raise
        full = getattr(error, "errno", None) in _FULL or shutil.disk_usage(folder).free < _FULL_DISK_BYTES
        if full:
            raise RecipeError(
                f"{folder}: the disk is full; free space there or set runs_dir to another disk"
            ) from error
        raise
