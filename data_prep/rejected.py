"""The list of the documents that could not be read: one JSON line for each, or for a stretch of them."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from data_prep.reading.records import Rejection
from foundation.files import atomic_path, explained_writes, publish, temporary_path


class RejectedWriter:
    """Writes rejections as they come, to a file that appears at the end, if there were any; none stay in memory.

    A context manager. `documents` counts them; `bytes_lost` is the input lost where their number is unknown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents = 0
        self.bytes_lost = 0
        self._temporary = temporary_path(path)

    def __enter__(self) -> "RejectedWriter":
        with explained_writes(self.path):
            self._stream = self._temporary.open("w", encoding="utf-8")
        return self

    def add(self, rejections: Iterable[Rejection]) -> None:
        """Raises: DiskError if the disk is full."""
        for rejection in rejections:
            self.documents += rejection.documents
            self.bytes_lost += (rejection.bytes or 0) if rejection.more else 0
            with explained_writes(self.path):
                self._stream.write(f"{rejection.model_dump_json()}\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with explained_writes(self.path):
                    self._stream.close()
                    if self.documents:
                        publish(self._temporary, self.path)
        finally:
            with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
                self._stream.close()
            self._temporary.unlink(missing_ok=True)


def join_rejected(lists: Iterable[Path], path: Path) -> None:
    """All lines of the lists that there are, in order, in one file; no file if there are none.

    Raises: DiskError if the disk is full.
    """
    present = [one for one in lists if one.is_file()]
    if not present:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, temporary.open("wb") as joined:
        for one in present:
            with one.open("rb") as lines:
                shutil.copyfileobj(lines, joined)
