"""Answers kept one by one: after a kill, on a full disk, and with whatever text a model writes."""

import errno
import os
from pathlib import Path

import pytest

from eval.answers.journal import Journal
from foundation.errors import DiskError

RECORDS = [{"index": 0, "got": "a\u2028b\x85c\nd"}, {"index": 3, "got": "東京"}]


def test_records_are_read_back_whatever_is_in_them(tmp_path: Path) -> None:
    Journal(tmp_path / "units" / "x.answers", "d").add(RECORDS)
    assert Journal(tmp_path / "units" / "x.answers", "d").records == {0: RECORDS[0], 3: RECORDS[1]}


def test_a_line_that_was_cut_off_goes_and_others_follow(tmp_path: Path) -> None:
    path = tmp_path / "x.answers"
    Journal(path, "d").add(RECORDS)
    path.write_text(path.read_text()[:-9])
    journal = Journal(path, "d")
    assert journal.records == {0: RECORDS[0]}
    journal.add([RECORDS[1]])
    assert Journal(path, "d").records == {0: RECORDS[0], 3: RECORDS[1]}


def test_answers_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    Journal(tmp_path / "x.answers", "d").add(RECORDS)
    assert Journal(tmp_path / "x.answers", "other").records == {}


def test_a_full_disk_is_one_line_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "x.answers", "d")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError) as caught:
        journal.add(RECORDS)
    assert str(caught.value) == (
        f"{tmp_path / 'x.answers'}: the disk is full; free some space and run again, finished units are kept"
    )
    assert journal.records == {}
