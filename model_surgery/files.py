"""Reading JSON, digests of files, and folders that are as before after a failure."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_surgery.errors import SurgeryError

_SAMPLE = 1 << 20


@contextmanager
def nothing_left_on_failure(folder: Path) -> Iterator[None]:
    """If the block fails, removes the files that it made directly in `folder`, and the folder if it made that too."""
    existed = folder.is_dir()
    before = set(folder.iterdir()) if existed else set()
    try:
        yield
    except BaseException:
        for path in set(folder.iterdir()) - before if folder.is_dir() else ():
            path.unlink()
        if not existed and folder.is_dir():
            folder.rmdir()
        raise


def remove_files(paths: Iterable[Path]) -> None:
    """Deletes those that are there, in this order."""
    for path in paths:
        path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises: SurgeryError if there is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding or of the syntax
        raise SurgeryError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise SurgeryError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def file_digest(path: Path) -> str:
    """sha256 of all bytes of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint_files(paths: Iterable[Path]) -> str:
    """sha256 over the name, size and three samples of 1 MiB (start, middle, end) of every file.

    Cheap enough to take before every run, however large the files; files of up to 1 MiB count whole.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as handle:
            for offset in sorted({0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)}):
                handle.seek(offset)
                digest.update(handle.read(_SAMPLE))
    return digest.hexdigest()
