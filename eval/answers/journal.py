"""Answers kept one by one as they come, so that a killed evaluation goes on after the last of them."""

import json
import os
from pathlib import Path
from typing import Any

from eval.files import disk_errors

Record = dict[str, Any]


class Journal:
    """Records of one unit, by their index; those that another digest stands beside are not read."""

    def __init__(self, path: Path, digest: str) -> None:
        self._path = path
        self._digest = digest
        self.records: dict[int, Record] = {}
        if path.is_file():
            self._read()

    def add(self, records: list[Record]) -> None:
        """Appends records, each with an index, and waits until they are on disk.

        Raises: EvaluationError where the disk is full.
        """
        lines = [json.dumps({"digest": self._digest, **record}, ensure_ascii=False) + "\n" for record in records]
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write("".join(lines))
                stream.flush()
                os.fsync(stream.fileno())
        self.records |= {record["index"]: record for record in records}

    def close(self) -> None:
        """Removes the file: the unit is kept as a whole from here on."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        """What is readable and of this unit; a last line that was cut off is taken away, so that others may follow."""
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut off in the middle of a write
            if isinstance(record, dict) and record.pop("digest", None) == self._digest:
                kept.append(record)
        self._path.unlink()
        if kept:
            self.add(kept)
