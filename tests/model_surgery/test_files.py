"""Reading JSON, digests of files, and folders that are as before after a failure."""

from pathlib import Path

import pytest

from foundation.files import write_json
from model_surgery.errors import SurgeryError
from model_surgery.files import fingerprint_files, nothing_left_on_failure, read_json


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", r"not valid JSON \(Expecting property name"),
        (b"\xff{}", r"not valid JSON \('utf-8' codec"),
        (b"[1]", "holds a JSON list, not an object"),
    ],
)
def test_what_is_no_json_object_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SurgeryError, match=f"/a: {reason}"):
        read_json(tmp_path / "a")


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
