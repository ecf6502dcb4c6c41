"""Files appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from model_surgery.errors import SurgeryError
from model_surgery.files import atomic_path, fingerprint_files, nothing_left_on_failure, read_json, write_json


def test_json_is_written_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"é": [1, 2.5, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"é": [1, 2.5, None]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_an_error_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    with pytest.raises(RuntimeError, match="halfway"), atomic_path(path) as temporary:
        temporary.write_text('{"new": tr')
        raise RuntimeError("halfway")
    assert read_json(path) == {"old": True}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_and_no_quota_are_bad_input(number: int, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"a\.bin: the disk is full"), atomic_path(tmp_path / "a.bin"):
        raise OSError(number, os.strerror(number))
    # safetensors and child processes have only the text
    with pytest.raises(SurgeryError, match="the disk is full"), atomic_path(tmp_path / "a.bin"):
        raise RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")
    with pytest.raises(OSError, match="Permission denied"), atomic_path(tmp_path / "a.bin"):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_bad_input(small_disk: Path) -> None:
    with pytest.raises(SurgeryError, match="the disk is full"):
        write_json(small_disk / "a.json", ["x" * 200_000])
    assert list(small_disk.iterdir()) == []


def test_a_failed_block_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for folder in (tmp_path, tmp_path / "made"):
        with pytest.raises(KeyboardInterrupt), nothing_left_on_failure(folder):
            write_json(folder / "new.json", {})
            raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]


def test_the_fingerprint_is_over_names_sizes_and_samples(tmp_path: Path) -> None:
    content = bytearray(4 << 20)
    (tmp_path / "a").write_bytes(content)
    before = fingerprint_files([tmp_path / "a"])
    for position in (0, 2 << 20, (4 << 20) - 1):
        changed = bytearray(content)
        changed[position] = 1
        (tmp_path / "a").write_bytes(changed)
        assert fingerprint_files([tmp_path / "a"]) != before
    (tmp_path / "a").write_bytes(content[:-1])
    assert fingerprint_files([tmp_path / "a"]) != before
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b").write_bytes(content)
    assert fingerprint_files([tmp_path / "b"]) != before
