"""Reading logs: their end, and what comes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

LINES = 8
_TAIL_BYTES = 65_536


def last_lines(log: Path, count: int = LINES) -> list[str]:
    """The end of a log, as it looked on a terminal: of a progress bar's states only the last."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-count:]


def follow(path: Path, is_over: Callable[[], bool], seconds: float = 1.0) -> Iterator[str]:
    """What is in a log, and what comes, until `is_over` and nothing more has come."""
    with path.open("r", encoding="utf-8", errors="replace") as file:
        while True:
            over = is_over()
            if text := file.read():
                yield text
            elif over:
                return
            else:
                time.sleep(seconds)
