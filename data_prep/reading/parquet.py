"""Documents of a Parquet file: one column, row group by row group."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING

from data_prep.errors import DataError
from data_prep.reading.files import SourceFile, local_path, open_file
from data_prep.reading.records import BATCH_BYTES, BATCH_DOCUMENTS, Batch, Records, one_line

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

READ_BUFFER = 2**20  # bytes of a column chunk that are held while its pages are read


class TextColumn:
    """The text column of an opened Parquet file."""

    def __init__(self, file: "pyarrow.parquet.ParquetFile", column: str) -> None:
        self.file = file
        self.name = column
        schema = file.schema_arrow
        self.problem = column_problem(schema, column)
        paths = [file.metadata.schema.column(index).path for index in range(file.metadata.num_columns)]
        self._index = None if self.problem else paths.index(column)

    def row_groups(self) -> list[tuple[int, int]]:
        """(rows, bytes of text once decompressed) of every row group; 0 bytes where there is no such column."""
        groups = (self.file.metadata.row_group(number) for number in range(self.file.num_row_groups))
        if self._index is None:
            return [(group.num_rows, 0) for group in groups]
        return [(group.num_rows, group.column(self._index).total_uncompressed_size) for group in groups]

    def texts(self, group: int, batch_rows: int) -> Iterator[list[str | bytes | None]]:
        """The column's values in one row group; bytes where the type is binary or the text is not UTF-8."""
        batches = self.file.iter_batches(batch_rows, row_groups=[group], columns=[self.name], use_threads=False)
        for batch in batches:
            yield _values(batch.column(0))


def open_parquet(file: SourceFile) -> "pyarrow.parquet.ParquetFile":
    """Read the footer.

    Raises: ArrowException or OSError if it cannot be read; ConnectionError for a remote file that may be read later.
    """
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(
        local_path(file.url) or open_file(file),
        pre_buffer=False,  # else whole row groups of the column are held
        buffer_size=READ_BUFFER,
        page_checksum_verification=True,
    )


def read_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for a damaged file or one that cannot be read, a failing connection among them."""
    from pyarrow import ArrowException

    return (OSError, ArrowException)


def column_problem(schema: "pyarrow.Schema", column: str) -> str | None:
    """Why the column has no texts, None if it has."""
    import pyarrow

    if schema.names.count(column) != 1:
        return missing_column(column, schema.names)
    kind = schema.field(column).type
    value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    of_text = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_binary_view")
    if any(getattr(pyarrow.types, name)(value) for name in of_text):
        return None
    return f"column {column!r} is {kind}, not a string"


def missing_column(column: str, columns: list[str]) -> str:
    nearest = get_close_matches(column, columns, n=1, cutoff=0.0)
    hint = f"; nearest: {nearest[0]}" if nearest else ""
    return f"no column {column!r}; it has {', '.join(columns) or 'none'}{hint}"


def read_parquet(file: SourceFile, column: str, groups: range, max_document_bytes: int) -> Iterator[Records]:
    """The documents of some row groups. What cannot be read of a row group is rejected, and the next one is read.

    Raises: DataError if the column has no texts; what `open_parquet` raises; ConnectionError.
    """
    with open_parquet(file) as parquet:
        texts = TextColumn(parquet, column)
        if texts.problem:
            raise DataError(f"{file.url}: {texts.problem}")
        sizes = texts.row_groups()
        first = sum(rows for rows, _ in sizes[: groups.start])
        batch = Batch(file.url, max_document_bytes, str)
        for group in groups:
            yield from _read_group(texts, group, first, sizes[group], batch)
            first += sizes[group][0]
        yield from batch.take()


def _read_group(column: TextColumn, group: int, first: int, size: tuple[int, int], batch: Batch) -> Iterator[Records]:
    rows, text_bytes = size
    end = first + rows
    row = first
    reason = "the row group holds fewer rows than the footer says"
    batch.place = lambda row: f"row {row} (row group {group})"
    try:
        for texts in column.texts(group, batch_rows(rows, text_bytes)):
            for text in texts:
                _add(batch, text, row, column.name)
                row += 1
                if batch.full:
                    yield from batch.take()
    except ConnectionError:
        raise
    except read_errors() as error:
        reason = f"cannot be read ({one_line(error)})"
    if row < end:
        lost = text_bytes * (end - row) // rows
        place = f"rows {row}-{end - 1} (row group {group})"
        batch.reject(row, reason, size=lost, documents=end - row, place=place)


def batch_rows(rows: int, text_bytes: int) -> int:
    """Rows to decode at once, so that they hold about a batch of text."""
    return min(BATCH_DOCUMENTS, max(1, BATCH_BYTES * rows // max(1, text_bytes)))


def _add(batch: Batch, text: str | bytes | None, row: int, column: str) -> None:
    if isinstance(text, str):
        batch.add(text, row, 4 * len(text))  # no character takes more in UTF-8
    elif text is None:
        batch.reject(row, f"{column} is null", size=0)
    else:
        try:
            batch.add(str(text, "utf-8"), row, len(text))
        except UnicodeDecodeError as error:
            batch.reject(row, f"invalid UTF-8 ({one_line(error)})", size=len(text))


def _values(column: "pyarrow.Array") -> list[str | bytes | None]:
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not look into strings that it reads
        return column.cast(pyarrow.large_binary()).to_pylist()
