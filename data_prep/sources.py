"""Documents out of JSONL, Parquet and text files, streamed through the Hugging Face `datasets` library."""

import glob
import logging
import zlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.config import SourceConfig
from data_prep.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset

FORMAT_OF_SUFFIX = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "text"}
COMPRESSIONS = (".gz", ".zst")
PARQUET_BATCH = 1024  # documents
LOADERS = {"jsonl": "json", "parquet": "parquet", "text": "text"}
SAMPLE_BY = {"file": "document", "line": "line", "paragraph": "paragraph"}


def source_files(source: SourceConfig) -> list[tuple[Path, str]]:
    """The files of a source in sorted order, each with its format.

    A folder gives all files below it whose suffix tells the source's format; hidden ones are left out.

    Raises: DataError if there is none, or if a format cannot be told.
    """
    path = Path(source.path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _listed(file, path, source.format))
        if not files:
            raise DataError(f"source {source.path}: the folder has no {_wanted(source.format)} file")
    elif path.exists():
        files = [path]
    else:
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not files:
            raise DataError(f"source {source.path}: no such file, and no file matches it as a glob")
    found = [(file, _format(file, source)) for file in files]
    if len({kind for _, kind in found}) > 1:
        raise DataError(
            f"source {source.path}: holds files of several formats; set format, or make one source of each with a glob"
        )
    return found


def documents(source: SourceConfig) -> Iterator[str]:
    """The text of every document, file by file in sorted order; empty ones too, for the caller to count.

    Memory holds one chunk of a file (10 MB of JSONL or text; in Parquet, one row group's text), whatever its size;
    only a document that is a whole file (text_unit "file", a text without empty lines) or a JSON array is read at once.

    Raises: DataError if a file is missing, corrupt or cut short, lacks the text column, or a text is not a string.
    """
    for file, kind in source_files(source):
        yield from _file_documents(file, kind, source)


def check_source(source: SourceConfig) -> None:
    """Open every file of a source and look for the text column, without reading on.

    Raises: DataError as `documents` does for what shows in a file's first chunk.
    """
    for file, kind in source_files(source):
        with _Reading(file):
            _open(file, kind, source)


def _file_documents(file: Path, kind: str, source: SourceConfig) -> Iterator[str]:
    column = _column(kind, source)
    with _Reading(file):
        if file.suffix == ".zst":
            _refuse_cut_zstd(file)
        rows = _open(file, kind, source)
        for number, row in enumerate(rows or (), start=1):
            text = row[column]
            if text is None:
                raise DataError(f"{file}: document {number}: {column} is null; remove it or give it a text")
            if not isinstance(text, str):
                raise DataError(f"{file}: document {number}: {column} is {type(text).__name__}, not a string")
            yield text


def _open(file: Path, kind: str, source: SourceConfig) -> "IterableDataset | None":
    """The rows of a file, checked to have the text column; None if it has no rows at all."""
    if kind == "text":
        return _stream(file, kind, sample_by=SAMPLE_BY[source.text_unit])
    if kind == "parquet":
        _check_column(file, _stream(file, kind).column_names, source)
        # No other column is read. The loader's own batch is the first row group, which fails where that is empty.
        return _stream(file, kind, columns=[source.text_column], batch_size=PARQUET_BATCH)
    # The loader's guess at recordings of chat agents could reshape a column; our files are plain records.
    rows = _stream(file, kind, parse_agent_traces=False)
    if rows is not None:
        _check_column(file, rows.column_names or list(next(iter(rows), {})), source)
    return rows


def _stream(file: Path, kind: str, **options: object) -> "IterableDataset | None":
    from datasets import load_dataset

    # The loaders log an error and raise it; we raise ours, which says the same.
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    try:
        return load_dataset(
            LOADERS[kind],
            data_files={"train": [glob.escape(str(file))]},
            split="train",
            streaming=True,
            **options,
        )
    except StopIteration:  # raised by the JSON loader for a file without a single byte
        return None


def _check_column(file: Path, columns: list[str], source: SourceConfig) -> None:
    if source.text_column in columns:
        return
    nearest = get_close_matches(source.text_column, columns, n=1, cutoff=0.0)
    hint = f"; nearest: {nearest[0]}" if nearest else ""
    raise DataError(f"{file}: no column {source.text_column!r}; it has {', '.join(columns) or 'none'}{hint}")


def _refuse_cut_zstd(file: Path) -> None:
    """Read a .zst file once through: the streaming reader takes one that is cut short for a complete one.

    Raises: DataError if the last frame has no end.
    """
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 16):
            while chunk:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise DataError(f"{file}: the zstd file is cut short; fetch it again")


class _Reading:
    """Turns what goes wrong in the readers below into a DataError that names the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, DataError) or not isinstance(error, _read_errors()):
            return
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"{self.file}: cannot be read ({type(error).__name__}: {reason})") from error


def _read_errors() -> tuple[type[Exception], ...]:
    from datasets.exceptions import DatasetsError
    from datasets.table import CastError
    from pyarrow import ArrowException
    from zstandard import ZstdError

    return (OSError, EOFError, ValueError, zlib.error, ZstdError, ArrowException, CastError, DatasetsError)


def _column(kind: str, source: SourceConfig) -> str:
    return "text" if kind == "text" else source.text_column


def _format(file: Path, source: SourceConfig) -> str:
    kind = source.format if source.format != "auto" else _format_by_suffix(file)
    if kind is None:
        raise DataError(f"{file}: its suffix tells no format; set format to jsonl, parquet or text")
    return kind


def _format_by_suffix(file: Path) -> str | None:
    name = file.with_suffix("") if file.suffix in COMPRESSIONS else file
    return FORMAT_OF_SUFFIX.get(name.suffix)


def _listed(file: Path, folder: Path, kind: str) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    found = _format_by_suffix(file)
    return not hidden and file.is_file() and found is not None and kind in ("auto", found)


def _wanted(kind: str) -> str:
    return "/".join(suffix for suffix, found in FORMAT_OF_SUFFIX.items() if kind in ("auto", found))
