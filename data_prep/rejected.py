"""The list of the documents that could not be read: one JSON line for each, or for a stretch of them."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from data_prep.reading.records import Rejection
from data_prep.shards import partial, publish, writing


class RejectedWriter:
    """Writes rejections as they come, to a file that appears at the end, if there were any; none stay in memory.

    A context manager. `documents` counts them; `bytes_lost` is the input lost where their number is unknown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents = 0
        self.bytes_lost = 0

    def __enter__(self) -> "RejectedWriter":
        with writing(self.path):
            self._file = partial(self.path).open("w", encoding="utf-8")
        return self

    def add(self, rejections: Iterable[Rejection]) -> None:
        """Raises: DataError if the disk is full."""
        for rejection in rejections:
            self.documents += rejection.documents
            self.bytes_lost += (rejection.bytes or 0) if rejection.more else 0
            with writing(self.path):
                self._file.write(f"{rejection.model_dump_json()}\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with writing(self.path):
                    self._file.close()
                    if self.documents:
                        publish(self.path)
        finally:
            with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
                self._file.close()
            partial(self.path).unlink(missing_ok=True)


def join_rejected(parts: Iterable[Path], path: Path) -> None:
    """All lines of the parts that there are, in order, in one file; no file if there are none."""
    found = [part for part in parts if part.is_file()]
    if not found:
        path.unlink(missing_ok=True)
        return
    try:
        with writing(path), partial(path).open("wb") as joined:
            for part in found:
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, joined)
        with writing(path):
            publish(path)
    finally:
        partial(path).unlink(missing_ok=True)
