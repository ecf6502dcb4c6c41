"""Files are whole or absent, with names that no other process uses."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from foundation import files
from foundation.errors import DiskError


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with files.atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert files.is_temporary(temporary)
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "old")

    class Interrupted(Exception):
        pass

    with pytest.raises(Interrupted), files.atomic_path(path) as temporary:
        temporary.write_text("new")
        raise Interrupted
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_readable(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"é": [1, 2.5, None]}
    assert text.startswith('{\n  "é": [')


def test_newlines_are_kept(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file", "a\r\nb\n")
    assert (tmp_path / "file").read_bytes() == b"a\r\nb\n"


def test_file_and_folder_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        calls.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        calls.append(f"rename {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    path = tmp_path / "file"
    with files.atomic_path(path) as temporary:
        temporary.write_text("text")
        name = temporary.name
    assert calls == [f"sync {name}", "rename file", f"sync {tmp_path.name}"]


def test_two_writers_of_one_process_have_two_names(tmp_path: Path) -> None:
    assert files.temporary_path(tmp_path / "file") != files.temporary_path(tmp_path / "file")


def test_hosts_and_containers_of_one_name_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node")
    stat = os.stat
    machines = set()
    for namespace in (1, 2):

        class Namespace:
            st_ino = namespace

        files._this_machine.cache_clear()
        monkeypatch.setattr(os, "stat", lambda path, *rest, **more: Namespace if "ns/pid" in str(path) else stat(path))
        machines.add(files._this_machine())
    files._this_machine.cache_clear()
    assert len(machines) == 2


def test_leftovers_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    program = (
        f"from foundation.files import *; print(temporary_path(__import__('pathlib').Path({str(tmp_path / 'a')!r})))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}
    dead = Path(subprocess.check_output([sys.executable, "-c", program], text=True, env=environment).strip())
    alive = files.temporary_path(tmp_path / "a")
    elsewhere = tmp_path / dead.name.replace(socket.gethostname(), "another-host")
    for path in (dead, alive, elsewhere):
        path.touch()
    files.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, elsewhere.name}


@pytest.mark.parametrize("small_disk", ["20k"], indirect=True)
def test_a_full_disk_is_one_line(small_disk: Path) -> None:
    with pytest.raises(DiskError, match=r"big\.txt: the disk is full; free space there"):
        files.write_text(small_disk / "big.txt", "x" * 100_000)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_and_no_quota_are_a_full_disk(number: int, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"a\.bin: the disk is full"), files.atomic_path(tmp_path / "a.bin"):
        raise OSError(number, os.strerror(number))
    # safetensors and child processes have only the text
    with pytest.raises(DiskError, match=r"a\.bin: the disk is full"), files.atomic_path(tmp_path / "a.bin"):
        raise RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")
    assert list(tmp_path.iterdir()) == []


def test_an_input_output_error_is_no_bad_input(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), files.atomic_path(tmp_path / "a.bin"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"file/below: cannot be written \((Not a directory|File exists)\)"):
        files.write_text(tmp_path / "file" / "below", "text")


def test_a_line_is_added(tmp_path: Path) -> None:
    files.append_line(tmp_path / "lines", "a")
    files.append_line(tmp_path / "lines", "b")
    assert (tmp_path / "lines").read_text() == "a\nb\n"


def test_only_the_first_of_two_files_is_created(tmp_path: Path) -> None:
    assert files.create_text(tmp_path / "file", "first")
    assert not files.create_text(tmp_path / "file", "second")
    assert (tmp_path / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_folder_appears_whole_and_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def note_sync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    temporary = files.temporary_path(tmp_path / "folder")
    (temporary / "below").mkdir(parents=True)
    (temporary / "below" / "file").write_text("text")
    monkeypatch.setattr(os, "fsync", note_sync)
    files.publish_folder(temporary, tmp_path / "folder")
    assert (tmp_path / "folder" / "below" / "file").read_text() == "text"
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
    assert sorted(synced[:2]) == ["below", "file"] and synced[2:] == [temporary.name, tmp_path.name]


def test_a_folder_that_was_removed_does_not_come_back(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(DiskError, match=r"gone/file: cannot be written \(No such file or directory\)"):
        files.write_text(gone / "file", "text", make_folder=False)
    with pytest.raises(DiskError, match=r"gone/file: cannot be written \(No such file or directory\)"):
        files.create_text(gone / "file", "text")
    assert not gone.exists()


def test_a_file_that_was_to_be_read_is_no_matter_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), files.explained_writes(tmp_path / "file"):
        (tmp_path / "other").read_text()


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=r"file: cannot be written \(Read-only file system\); choose"),
        files.explained_writes(tmp_path / "file"),
    ):
        raise OSError(30, "Read-only file system")


def test_a_full_disk_tells_the_bytes_where_they_are_known(tmp_path: Path) -> None:
    words = r"file: the disk is full: 1,234 bytes written, [\d,]+ bytes free; free space there"
    with pytest.raises(DiskError, match=words), files.explained_writes(tmp_path / "file", written=1234):
        raise OSError(28, "No space left on device")


def test_a_folder_that_a_dead_process_left_goes(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    ours = files.temporary_path(tmp_path / "folder")
    dead = ours.with_name(ours.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    for folder in (ours, dead):
        folder.mkdir()
        (folder / "file").touch()
    files.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [ours]
