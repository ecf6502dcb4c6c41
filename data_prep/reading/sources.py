"""The files of a source, and a first look into them."""

import glob
import os
import posixpath
from itertools import islice
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.reading.files import SourceFile, remote_mark, unreachable
from data_prep.reading.hub_cache import HUB
from data_prep.reading.jsonl import longest_line, parse_line
from data_prep.reading.parquet import column_problem, missing_column, open_parquet, read_errors
from data_prep.reading.passages import LINE, Passages
from data_prep.reading.streams import open_stream

__all__ = ["SourceFile", "check_source", "source_files"]

Format = Literal["jsonl", "parquet", "text"]
Compression = Literal["gz", "zst"]
FORMAT_OF_SUFFIX: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
}
COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst"}
RECORDS_LOOKED_AT = 100

Listed = tuple[str, int, str]  # url, size in bytes, mark


def source_files(source: SourceConfig) -> tuple[SourceFile, ...]:
    """The files of a source, sorted by url. None of them is opened.

    A folder gives all files below it whose suffix tells the source's format; hidden ones are left out.

    Raises: DataError if there is none, or if a format cannot be told; ConnectionError if a server does not answer.
    """
    if source.path is None:
        from data_prep.reading.hub import hub_files

        listed = hub_files(source)
    elif "://" in source.path and not source.path.startswith("file://"):
        listed = _remote_files(source.path, source)
    else:
        listed = _local_files(source.path, source)
    files = sorted((_source_file(one, source) for one in listed), key=lambda file: file.url)
    if len({file.format for file in files}) > 1:
        raise DataError(
            f"source {source.label}: holds files of several formats; set format, or make one source of each with a glob"
        )
    return tuple(files)


def check_source(source: SourceConfig) -> None:
    """Look for the text column in the first, the middle and the last file of a source. Bad records are no error here.

    Raises: DataError as `source_files` does, if the column is missing, or if a file is a JSON array; ConnectionError.
    """
    files = source_files(source)
    for number in sorted({0, len(files) // 2, len(files) - 1}):
        _check_column(files[number], source)


def _check_column(file: SourceFile, source: SourceConfig) -> None:
    problem = None
    try:
        if file.format == "parquet":
            with open_parquet(file) as parquet:
                problem = column_problem(parquet.schema_arrow, source.text_column)
        elif file.format == "jsonl" and file.size:
            problem = _jsonl_problem(file, source.text_column)
    except ConnectionError:
        raise
    except read_errors():
        return  # the reader counts what it cannot read
    if problem:
        raise DataError(f"{file.url}: {problem}")


def _jsonl_problem(file: SourceFile, column: str) -> str | None:
    columns: dict[str, None] = {}
    with open_stream(file) as stream:
        lines = islice(Passages(stream, LINE, 0, None, longest_line(0)), RECORDS_LOOKED_AT)
        for number, (_, line, _) in enumerate(lines):
            if number == 0 and line and line.lstrip().startswith(b"["):
                return "is a JSON array; write one JSON object on each line (JSON Lines)"
            try:
                value = parse_line(line or b"")
            except DataError:
                continue
            if isinstance(value, dict):
                if column in value:
                    return None
                columns |= dict.fromkeys(value)
    return missing_column(column, list(columns)) if columns else None


def _local_files(place: str, source: SourceConfig) -> list[Listed]:
    path = Path(place.removeprefix("file://")).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _belongs(file.relative_to(path).as_posix(), source))
        files = [file for file in files if not file.is_dir()]
        if not files:
            raise _empty_folder(source)
    elif os.path.lexists(path):
        files = [path]
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True) if not Path(name).is_dir()]
        if not files:
            raise DataError(f"source {place}: no such file, and no file matches it as a glob")
    return [_listed(file) for file in files]


def _listed(file: Path) -> Listed:
    """A link to nowhere is listed too, without a size, for the reader to reject."""
    try:
        known = file.stat()
    except FileNotFoundError:
        known = file.lstat()
    return str(file), known.st_size, str(known.st_mtime_ns)


def _remote_files(place: str, source: SourceConfig) -> list[Listed]:
    if place.startswith(HUB):
        raise DataError(f"source {place}: name a data set of the Hub with hub, its commit with revision")
    try:
        return _ask_remote(place, source)
    except FileNotFoundError as error:
        raise DataError(f"source {place}: no such file, and no file matches it as a glob") from error
    except DataError:
        raise
    except (ValueError, ImportError, PermissionError) as error:  # an unknown protocol, or its package is missing
        raise DataError(f"source {place}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # aiohttp, botocore, httpx and others have no base class in common
        raise unreachable(place, error) from error


def _ask_remote(place: str, source: SourceConfig) -> list[Listed]:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(place)
    if glob.has_magic(path):
        infos = fs.glob(path, detail=True)
    elif fs.isdir(path):
        below = fs.find(path, detail=True)
        infos = {name: info for name, info in below.items() if _belongs(posixpath.relpath(name, path), source)}
        if not infos:
            raise _empty_folder(source)
    else:
        infos = {path: fs.info(path)}
    listed = []
    for name, info in infos.items():
        if info["type"] == "file":
            known = fs.info(name) if info.get("size") is None else info
            if known.get("size") is None:
                raise DataError(f"{name}: the server does not tell its size; copy the file to a disk")
            listed.append((fs.unstrip_protocol(name), known["size"], remote_mark(known)))
    if not listed:
        raise FileNotFoundError(path)
    return listed


def _empty_folder(source: SourceConfig) -> DataError:
    suffixes = [suffix for suffix, kind in FORMAT_OF_SUFFIX.items() if source.format in ("auto", kind)]
    return DataError(f"source {source.path}: the folder has no {'/'.join(suffixes)} file")


def _belongs(name: str, source: SourceConfig) -> bool:
    """Whether a file below a folder, named from there, belongs to the source."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    kind, _ = _by_suffix(name)
    return not hidden and kind is not None and source.format in ("auto", kind)


def _source_file(listed: Listed, source: SourceConfig) -> SourceFile:
    url, size, mark = listed
    kind, compression = _by_suffix(urlsplit(url).path if "://" in url else url)
    if source.format != "auto":
        kind = source.format
    if kind is None:
        raise DataError(f"{url}: its suffix tells no format; set format to jsonl, parquet or text")
    if kind == "parquet" and compression:
        raise DataError(f"{url}: a Parquet file that is compressed as a whole cannot be read in parts; decompress it")
    return SourceFile(url=url, format=kind, compression=compression, size=size, mark=mark)


def _by_suffix(name: str) -> tuple[Format | None, Compression | None]:
    """Format and compression that the suffixes of a file tell."""
    stem, suffix = posixpath.splitext(name)
    compression = COMPRESSIONS.get(suffix)
    if compression:
        suffix = posixpath.splitext(stem)[1]
    return FORMAT_OF_SUFFIX.get(suffix), compression
