"""One file of a source: what is known of it without opening it, and its bytes."""

import io
import os
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from data_prep.errors import DataError
from data_prep.reading.hub_cache import HUB, cached_path
from data_prep.reading.records import one_line

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from fsspec import AbstractFileSystem

REMOTE_BLOCK = 8 * 2**20  # bytes of one request to a remote file
MARKS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "modified", "created")

Answer = TypeVar("Answer")


class SourceFile(BaseModel):
    """A file of documents, as it was listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="path of a local file, else an fsspec URL; hf:// URLs name their commit")
    format: Literal["jsonl", "parquet", "text"] = Field(description="what its bytes are, once decompressed")
    compression: Literal["gz", "zst"] | None = Field(default=None, description="how the whole file is compressed")
    size: int = Field(ge=0, description="bytes as stored")
    mark: str = Field(description="another value means that the file has changed (time, entity tag, commit)")

    def refuse_changed(self) -> None:
        """Raises: DataError if the file is another than the one that was listed, or gone; ConnectionError."""
        now = current_mark(self.url)
        if now != self.mark:
            change = "is gone" if now is None else "has changed"
            raise DataError(f"{self.url}: {change} since it was listed; prepare the data anew, into another folder")


def current_mark(url: str) -> str | None:
    """The mark of a file as it is now, None if there is none. A Hub file never changes: its URL names the commit.

    Raises: ConnectionError if a remote file's server does not answer.
    """
    if url.startswith(HUB):
        return url.partition("@")[2].partition("/")[0]
    try:
        if "://" not in url:
            return local_mark(url)
        fs, path = _remote(url)
        return remote_mark(fs.info(path))
    except FileNotFoundError:
        return None
    except Exception as error:  # see RemoteFile
        raise unreachable(url, error) from error


def local_mark(path: str) -> str:
    """The time of change; of a link to nowhere, which is listed for the reader to reject, its own."""
    try:
        return str(os.stat(path).st_mtime_ns)
    except FileNotFoundError:
        return str(os.lstat(path).st_mtime_ns)


def remote_mark(info: dict[str, Any]) -> str:
    """What a remote file system says of a file that changes with its content: entity tag, generation or time."""
    mark = next((info[key] for key in MARKS if info.get(key)), info.get("size"))
    # Listing a folder and asking for one file give the same tag or time in different clothes.
    return str(mark.timestamp() if isinstance(mark, datetime) else mark).strip('"')


def unreachable(url: str, error: Exception) -> ConnectionError:
    return ConnectionError(f"{url}: cannot be read now ({one_line(error)})")


def local_path(url: str) -> str | None:
    """Where the bytes lie on this machine: a local file, or a Hub file in the local Hub cache; None if elsewhere."""
    if "://" not in url:
        return url
    if url.startswith(HUB):
        return cached_path(url)
    return None


class StoredBytes(Protocol):
    """A file that is open for reading, at any place."""

    def read(self, size: int = ..., /) -> bytes: ...

    def seek(self, offset: int, whence: int = ..., /) -> int: ...

    def close(self) -> None: ...


def open_file(file: SourceFile) -> StoredBytes:
    """The stored bytes of a file, seekable.

    Raises: OSError if a local file cannot be opened; ConnectionError for all that goes wrong with a remote one, now or
    while it is read: it was there when it was listed, so it may be read later.
    """
    path = local_path(file.url)
    return open(path, "rb", buffering=0) if path is not None else RemoteFile(file)


class RemoteFile(io.RawIOBase):
    """A remote file whose every failure is a ConnectionError: each fsspec backend raises classes of its own."""

    def __init__(self, file: SourceFile) -> None:
        self._url = file.url
        self._file = self._ask(lambda: _open_remote(file))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._ask(lambda: self._file.read(size))

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        content = self.read(len(view))
        view[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._ask(lambda: self._file.seek(offset, whence))

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except Exception as error:  # aiohttp, botocore, httpx and others have no base class in common
            raise unreachable(self._url, error) from error


def _open_remote(file: SourceFile) -> BinaryIO:
    fs, path = _remote(file.url)
    if file.url.startswith(HUB):  # the size spares a listing of the file's folder, in every process
        return fs.open(path, "rb", block_size=REMOTE_BLOCK, size=file.size)
    return fs.open(path, "rb", block_size=REMOTE_BLOCK)


def _remote(url: str) -> "tuple[AbstractFileSystem, str]":
    from fsspec.core import url_to_fs

    return url_to_fs(url)
