"""What a source is now, cheap enough to ask before every run."""

import hashlib
from itertools import takewhile

from data_prep.config import SourceConfig
from data_prep.reading.files import SourceFile, local_path
from data_prep.reading.sources import source_files

SAMPLE_BYTES = 1 << 20
MOST_SAMPLED = 64  # files; of more, the time of change must do


def fingerprint(source: SourceConfig) -> str:
    """SHA-256 over the name and size of every file, and of what shows a change of its content.

    That is three samples of 1 MiB (start, middle, end) where there are at most 64 local files, and the file's mark
    (time, entity tag, commit) elsewhere.

    Raises: DataError as `source_files`.
    """
    files = source_files(source)
    digest = hashlib.sha256()
    for name, file in zip(below_common_folder([file.url for file in files]), files, strict=True):
        path = local_path(file.url) if len(files) <= MOST_SAMPLED else None
        digest.update(f"{name}:{file.size};".encode())
        digest.update(file.mark.encode() if path is None else _samples(path, file))
    return digest.hexdigest()


def below_common_folder(urls: list[str]) -> list[str]:
    """The urls without the folder that they have in common, so that the names are the same wherever it lies."""
    folders = [url.rpartition("/")[0].split("/") for url in urls]
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False)))
    return ["/".join(url.split("/")[shared:]) for url in urls]


def _samples(path: str, file: SourceFile) -> bytes:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for offset in sorted({0, max(0, file.size // 2 - SAMPLE_BYTES // 2), max(0, file.size - SAMPLE_BYTES)}):
                stream.seek(offset)
                digest.update(stream.read(SAMPLE_BYTES))
    except OSError as error:  # an unreadable file is a rejected one; becoming readable is a change
        digest.update(f"unreadable: {error.errno}".encode())
    return digest.digest()
