"""Writing files so that a reader sees all of one or nothing."""

import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_surgery.errors import SurgeryError

_SAMPLE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path`, synced to disk, if the block ends well.

    Raises: SurgeryError if the disk is full; the temporary file is removed on every error.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with full_disk_is_bad_input(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.chmod(_usual_mode())  # safetensors makes files that only their owner may read
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _usual_mode() -> int:
    """The permissions that a plain open() gives a new file; the process's mask can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def full_disk_is_bad_input(path: Path) -> Iterator[None]:
    """Turns the operating system's (or safetensors') "no space left" or "quota exceeded" into one clear line."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL):
            raise SurgeryError(f"{path}: the disk is full; free space there or choose another folder") from error
        raise


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


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Writes `value` as readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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
