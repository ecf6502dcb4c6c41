"""Temporary files of processes that were killed."""

import contextlib
import os
import re
from pathlib import Path

from data_prep.shards import this_machine


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in `folder` whose process, on this machine, is no more.

    Those of other machines stay: a task may be writing them.
    """
    for path in folder.glob(".*.partial"):
        made_by = re.search(rf"\.{re.escape(this_machine())}-(\d+)\.partial$", path.name)
        if made_by and not _alive(int(made_by[1])):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    with contextlib.suppress(PermissionError):  # it lives, as somebody else's
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True
