"""Pieces of work: row groups of a Parquet file, ranges of the bytes of any other."""

from itertools import accumulate, pairwise

from pydantic import BaseModel, ConfigDict, Field

from data_prep.config import SourceConfig
from data_prep.reading.files import SourceFile
from data_prep.reading.parquet import TextColumn, open_parquet, read_errors
from data_prep.reading.records import one_line

# A guess from the suffix alone, for text: the pieces of a file that is packed otherwise are of other sizes, not wrong.
DECOMPRESSED = 3
# A piece of a compressed file is found by decompressing all before it: n pieces cost (n + 1) / 2 times the file, at 1
# (zstd) to 4 (gzip) ms per MB of text.
MOST_PIECES = {"gz": 8, "zst": 16}


class Piece(BaseModel):
    """Part of a file: the documents whose row group, or whose first byte, lies in [start, stop)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: int = Field(ge=0, description="row group (Parquet), else byte of the decompressed content")
    stop: int | None = Field(description="the first that is not in it; null: all to the end of the file")
    text_bytes: int = Field(ge=0, description="about how much text it holds")
    documents: int | None = Field(default=None, ge=0, description="how many it holds; known for Parquet only")
    problem: str | None = Field(default=None, description="why nothing of it can be read")

    @property
    def row_groups(self) -> range:
        """Of a Parquet file: its row groups; none where nothing can be read."""
        return range(self.start, self.start if self.stop is None else self.stop)


def file_pieces(file: SourceFile, source: SourceConfig, piece_bytes: int) -> tuple[Piece, ...]:
    """Pieces of about `piece_bytes` of text that hold every document of the file once; none for an empty file.

    Only the footers of Parquet files are read. What cannot be read at all is one piece with a `problem`.

    Raises: ConnectionError if a remote file cannot be read now.
    """
    if file.size == 0:
        return ()
    if file.format == "parquet":
        return _parquet_pieces(file, source, piece_bytes)
    size = file.size * (DECOMPRESSED if file.compression else 1)
    if file.format == "text" and source.text_unit == "file":
        return (Piece(start=0, stop=None, text_bytes=size),)
    ranges = even_ranges(size, piece_bytes, MOST_PIECES[file.compression] if file.compression else None)
    pieces = [Piece(start=start, stop=stop, text_bytes=stop - start) for start, stop in ranges]
    if file.compression:
        pieces[-1] = pieces[-1].model_copy(update={"stop": None})
    return tuple(pieces)


def even_ranges(size: int, piece_bytes: int, most: int | None = None) -> list[tuple[int, int]]:
    """[0, size) cut into ranges of nearly equal length near `piece_bytes`, `most` of them at most."""
    count = max(1, round(size / piece_bytes))
    count = min(count, size, most or count)
    return list(pairwise(size * number // count for number in range(count + 1)))


def join_row_groups(sizes: list[int], piece_bytes: int) -> list[tuple[int, int]]:
    """Consecutive row groups joined to ranges of nearly equal size near `piece_bytes`; none is empty.

    A row group is never divided. It belongs to that even share of the whole in which its middle lies.
    """
    total = max(1, sum(sizes))
    count = max(1, round(total / piece_bytes))
    ends = list(accumulate(sizes))
    shares = [(2 * end - size) * count // (2 * total) for size, end in zip(sizes, ends, strict=True)]
    borders = [number for number in range(1, len(sizes)) if shares[number] != shares[number - 1]]
    return list(pairwise([0, *borders, len(sizes)]))


def _parquet_pieces(file: SourceFile, source: SourceConfig, piece_bytes: int) -> tuple[Piece, ...]:
    try:
        with open_parquet(file) as parquet:
            column = TextColumn(parquet, source.text_column)
            groups = column.row_groups()
    except ConnectionError:
        raise
    except read_errors() as error:
        return (Piece(start=0, stop=None, text_bytes=file.size, problem=f"cannot be read ({one_line(error)})"),)
    rows = sum(count for count, _ in groups)
    if not rows:
        return ()
    if column.problem:
        return (Piece(start=0, stop=len(groups), text_bytes=file.size, documents=rows, problem=column.problem),)
    ranges = join_row_groups([size for _, size in groups], piece_bytes)
    return tuple(_joined(groups[start:stop], start, stop) for start, stop in ranges)


def _joined(groups: list[tuple[int, int]], start: int, stop: int) -> Piece:
    rows = sum(count for count, _ in groups)
    return Piece(start=start, stop=stop, text_bytes=sum(size for _, size in groups), documents=rows)
