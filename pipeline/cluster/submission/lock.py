"""One submit of a run at a time, on file systems of any kind, also after one was killed."""

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import RecipeError


@contextmanager
def only_one(path: Path, doing: str) -> Iterator[None]:
    """Holds the lock file `path`. It is made by link(2), which is atomic on network file systems that have no flock.

    Raises: RecipeError if a process that is alive, or one on another machine, holds it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    own = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    temporary.write_text(json.dumps(own | {"file": temporary.name}))
    try:
        while not _linked(temporary, path):
            _remove_if_dead(path, doing)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # with its folder
    finally:
        temporary.unlink(missing_ok=True)


def _linked(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    return True


def _remove_if_dead(path: Path, doing: str) -> None:
    """Raises: RecipeError if the holder is, or may be, alive."""
    try:
        holder = json.loads(path.read_text())
    except FileNotFoundError:
        return  # it has just been given up
    if holder["host"] == socket.gethostname() and not _is_alive(holder):
        _put_away(path, holder)
        return
    raise RecipeError(
        f"{doing} is under way already: process {holder['pid']} on {holder['host']}; wait for it, or if it is gone: "
        f"rm {path}"
    )


def _put_away(path: Path, dead: dict[str, Any]) -> None:
    """Removes the lock of a dead process; not one that another process has put in its place since it was read."""
    aside = path.with_name(f".{path.name}.stale.{os.getpid()}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if json.loads(aside.read_text()) != dead:
        os.link(aside, path)
    else:
        path.with_name(dead["file"]).unlink(missing_ok=True)
    aside.unlink()


def _is_alive(holder: dict[str, float]) -> bool:
    try:
        return abs(psutil.Process(int(holder["pid"])).create_time() - holder["started"]) < 1
    except psutil.NoSuchProcess:
        return False
