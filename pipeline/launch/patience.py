"""Files that another machine has written: on a network file system they may be seen here only after a while."""

import os
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 120.0
_BETWEEN = 1.0


def machines() -> int:
    """Machines of the training that this process is a rank of (torchrun's GROUP_WORLD_SIZE); 1 outside of one."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def seen(path: Path, seconds: float = SECONDS) -> bool:
    """Whether the file is there, or comes to be seen within this time."""
    return _wait(lambda: path.is_file() or _is_listed(path), seconds)


def _is_listed(path: Path) -> bool:
    """Listing a folder asks the server again, where a name that was not found before may be remembered as absent."""
    try:
        return path.name in os.listdir(path.parent) and path.is_file()
    except FileNotFoundError:
        return False


def patiently(check: Callable[[], None], *errors: type[Exception], seconds: float = SECONDS) -> None:
    """Calls `check` again while it raises one of `errors`, which may only mean that something is not seen yet.

    Raises: as `check` in the end.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return check()
        except errors:
            if time.monotonic() > end:
                raise
        time.sleep(_BETWEEN)


def _wait(is_so: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (answer := is_so()) and time.monotonic() < end:
        time.sleep(_BETWEEN)
    return answer
