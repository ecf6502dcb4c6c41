from pathlib import Path

from eval.digests import digest_files


def test_digest_sees_name_and_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    first = digest_files([path])
    path.write_text("2")
    second = digest_files([path])
    renamed = path.rename(tmp_path / "b")
    assert len({first, second, digest_files([renamed])}) == 3


def test_digest_of_a_large_file_sees_its_size_and_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    digests = set()
    for size, place in ((65 * 2**20, None), (65 * 2**20, 0), (65 * 2**20, 65 * 2**20 - 1), (66 * 2**20, None)):
        with path.open("wb") as stream:
            stream.truncate(size)
            if place is not None:
                stream.seek(place)
                stream.write(b"x")
        digests.add(digest_files([path]))
    assert len(digests) == 4
