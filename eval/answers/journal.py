"""Answers kept one by one as they come, so that a killed evaluation goes on after the last of them."""

import json
from pathlib import Path
from typing import Any

from eval.errors import RUN_AGAIN
from foundation.files import append_line, explained_writes, write_text

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

        Raises: DiskError where the disk is full.
        """
        with explained_writes(self._path, RUN_AGAIN):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._path, "\n".join(map(self._line, records)), RUN_AGAIN)
        self.records |= {record["index"]: record for record in records}

    def _line(self, record: Record) -> str:
        return json.dumps({"digest": self._digest, **record}, ensure_ascii=False)

    def _read(self) -> None:
        """What is readable and of this unit; a last line that was cut off is taken away, so that others may follow."""
        for line in self._path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut off in the middle of a write
            if isinstance(record, dict) and record.pop("digest", None) == self._digest:
                self.records[record["index"]] = record
        write_text(self._path, "".join(f"{self._line(record)}\n" for record in self.records.values()), RUN_AGAIN)
