"""Writing files so that a reader, or a run after a power loss, sees all of one or nothing."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation.errors import DiskError
from foundation.full_disk import DEFAULT_WAY_OUT, explained_full_disk

_SUFFIX = ".tmp"
_UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
)


@contextmanager
def atomic_path(path: Path, way_out: str = DEFAULT_WAY_OUT, *, make_folder: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` if the block ends well.

    File and folder are synced to disk. The temporary file is removed on every error. Without `make_folder` a folder
    that is not there is an error: somebody else may have removed it, and it must not come back.

    Raises: DiskError if the disk is full or the folder cannot be written.
    """
    temporary = temporary_path(path)
    try:
        with explained_writes(path, way_out):
            if make_folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            publish(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written holds no temporary file
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Gives a finished temporary file its name; both survive a power loss when this returns."""
    sync_file(temporary)
    temporary.chmod(_usual_mode())  # safetensors makes files that only their owner may read
    os.replace(temporary, path)
    sync_folder(path.parent)


def publish_folder(temporary: Path, path: Path) -> None:
    """Gives a finished temporary folder its name; it and all below it survive a power loss when this returns."""
    for below in temporary.rglob("*"):
        sync_folder(below) if below.is_dir() else sync_file(below)
    sync_folder(temporary)
    os.replace(temporary, path)
    sync_folder(path.parent)


@contextmanager
def explained_writes(path: Path, way_out: str = DEFAULT_WAY_OUT, *, written: int | None = None) -> Iterator[None]:
    """Turns what a user can mend about writing `path` into one line: a full disk, a folder that takes no files.

    written: bytes of `path` written before; the line about a full disk tells them, and the bytes free.

    Raises: DiskError.
    """
    try:
        with explained_full_disk(path, way_out, written=written):
            yield
    except OSError as error:
        folder_is_gone = isinstance(error, FileNotFoundError) and not path.parent.exists()
        if error.errno not in _UNWRITABLE and not folder_is_gone:
            raise
        raise DiskError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error


def write_text(path: Path, text: str, way_out: str = DEFAULT_WAY_OUT, *, make_folder: bool = True) -> None:
    """Writes a text file atomically, as UTF-8 with the newlines of `text`; `make_folder` as in `atomic_path`.

    Raises: DiskError if the disk is full or the folder cannot be written.
    """
    with atomic_path(path, way_out, make_folder=make_folder) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def create_text(path: Path, text: str) -> bool:
    """Writes a text file atomically unless there is one by then, of whichever process; whether this call wrote it.

    Raises: DiskError if the disk is full or the folder cannot be written.
    """
    temporary = temporary_path(path)
    try:
        with explained_writes(path):
            temporary.write_text(text, encoding="utf-8", newline="")
            sync_file(temporary)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            sync_folder(path.parent)
            return True
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Writes `value` as readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str, way_out: str = DEFAULT_WAY_OUT) -> None:
    """Adds a line to a file; it is on the disk when this returns.

    Raises: DiskError if the disk is full or the folder cannot be written.
    """
    with explained_writes(path, way_out), path.open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")
        stream.flush()
        os.fsync(stream.fileno())


def sync_file(path: Path) -> None:
    """Makes a file's contents survive a power loss."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path` that no other process, on any host or in any container, uses for it."""
    return path.with_name(f".{path.name}.{_this_machine()}-{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files and folders in `folder` whose process, on this machine, is no more.

    Those of other machines and containers stay: a task may be writing them.
    """
    for path in folder.glob(f".*{_SUFFIX}"):
        writer = re.search(rf"\.{re.escape(_this_machine())}-(\d+)-[0-9a-f]+{re.escape(_SUFFIX)}$", path.name)
        if writer and not _is_alive(int(writer[1])):
            remove(path)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; one that is gone is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file is one that a write has not finished."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


@functools.cache
def _this_machine() -> str:
    """The host's name, and a digest of its boot and of where process numbers count: containers share a host's name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        namespace = f"{boot.read_text()}{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}-{hashlib.sha256(namespace.encode()).hexdigest()[:8]}"


def _is_alive(process: int) -> bool:
    with contextlib.suppress(PermissionError):  # it lives, as somebody else's
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True


def _usual_mode() -> int:
    """The permissions that a plain open() gives a new file; the process's mask can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
