"""A full disk is recognised behind what libraries make of it, and nothing else is taken for one."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from foundation.errors import DiskError
from foundation.full_disk import explained_full_disk, is_full_disk


def with_cause() -> BaseException:
    error = RuntimeError("PytorchStreamWriter failed writing file")
    error.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    return error


def while_handling() -> BaseException:
    error = RuntimeError("a worker ended")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    "make",
    [
        lambda: OSError(errno.ENOSPC, "anything"),
        lambda: RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"),  # as safetensors has it
        lambda: OSError("1000 requested and 12 written"),  # as numpy has it
        with_cause,
        while_handling,
    ],
)
def test_recognised(make: Callable[[], BaseException]) -> None:
    assert is_full_disk(make())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied"),
        RuntimeError("1000 requested and 12 written"),
        OSError("1000 requested"),
        ValueError("bad input"),
    ],
)
def test_not_recognised(error: Exception) -> None:
    assert not is_full_disk(error)


@pytest.mark.parametrize("small_disk", ["8k"], indirect=True)
def test_a_disk_without_space_explains_what_says_nothing_of_it(small_disk: Path) -> None:
    not_made_yet = small_disk / "run" / "stage"
    for path in (small_disk, not_made_yet):
        explained = explained_full_disk(path, "wait", by_free_space=True)
        with pytest.raises(DiskError, match="the disk is full; wait"), explained:
            raise RuntimeError("a worker ended with code 1")
    with pytest.raises(ValueError, match="bad input"), explained_full_disk(small_disk, by_free_space=True):
        raise ValueError("bad input")
    with pytest.raises(RuntimeError, match="code 1"), explained_full_disk(small_disk):
        raise RuntimeError("a worker ended with code 1")


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_a_disk_with_space_explains_nothing(small_disk: Path) -> None:
    with pytest.raises(RuntimeError, match="code 1"), explained_full_disk(small_disk, by_free_space=True):
        raise RuntimeError("a worker ended with code 1")
