"""The documents of a piece, in batches, and what of it could not be read."""

from collections.abc import Iterator

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.reading.files import SourceFile
from data_prep.reading.jsonl import line_text, longest_line
from data_prep.reading.parquet import read_errors, read_parquet
from data_prep.reading.passages import LINE, PARAGRAPH, Passages
from data_prep.reading.pieces import DECOMPRESSED, Piece
from data_prep.reading.records import Batch, Records, Rejection, one_line, too_long
from data_prep.reading.streams import Stream, open_stream

__all__ = ["Records", "Rejection", "read_piece"]


def read_piece(file: SourceFile, source: SourceConfig, piece: Piece, max_document_bytes: int) -> Iterator[Records]:
    """The documents of a piece in batches of at most 1,024 or about 2 MB.

    Every document of a file is in exactly one of its pieces, as text or as rejected, whatever the pieces are. A
    document that is longer than `max_document_bytes` (UTF-8) is rejected without being held.

    Raises: ConnectionError if a remote file cannot be read now; its documents are not rejected.
    """
    batch = Batch(file.url, max_document_bytes, "byte {}".format)
    if piece.problem:
        yield _nothing_read(file, piece, piece.problem)
        return
    unreadable: tuple[type[Exception], ...] = (DataError, *read_errors())
    try:
        if file.format == "parquet":
            yield from read_parquet(file, source.text_column, piece.row_groups, max_document_bytes)
            return
        stream = open_stream(file)
    except ConnectionError:
        raise
    except unreadable as error:
        yield _nothing_read(file, piece, f"cannot be read ({one_line(error)})")
        return
    with stream:
        if file.format == "jsonl":
            yield from _read_jsonl(stream, source.text_column, piece, batch, max_document_bytes)
        elif source.text_unit == "file":
            _read_whole(stream, file, batch, max_document_bytes)
        else:
            yield from _read_text(stream, source.text_unit, piece, batch, max_document_bytes)
    yield from batch.take()


def _read_jsonl(stream: Stream, column: str, piece: Piece, batch: Batch, limit: int) -> Iterator[Records]:
    passages = Passages(stream, LINE, piece.start, piece.stop, longest_line(limit))
    for position, line, length in passages:
        if line is None:
            batch.reject(position, f"a line of {length:,} bytes, over max_document_bytes ({limit:,})", size=length)
        elif line and not line.isspace():
            try:
                batch.add(line_text(line, column), position, length)
            except DataError as error:
                batch.reject(position, str(error), size=length)
        if batch.full:
            yield from batch.take()
    _reject_rest(passages, stream, piece, batch)


def _read_text(stream: Stream, text_unit: str, piece: Piece, batch: Batch, limit: int) -> Iterator[Records]:
    passages = Passages(stream, LINE if text_unit == "line" else PARAGRAPH, piece.start, piece.stop, limit + 2)
    for position, content, length in passages:
        if content is None:
            batch.reject(position, too_long(length, limit), size=length)
        else:
            _add_text(batch, position, content.removesuffix(b"\n").removesuffix(b"\r"))
        if batch.full:
            yield from batch.take()
    _reject_rest(passages, stream, piece, batch)


def _add_text(batch: Batch, position: int, content: bytes) -> None:
    try:
        batch.add(str(content, "utf-8"), position, len(content))
    except UnicodeDecodeError as error:
        batch.reject(position, f"invalid UTF-8 (byte {error.start}: {error.reason})", size=len(content))


def _read_whole(stream: Stream, file: SourceFile, batch: Batch, limit: int) -> None:
    if file.compression is None and file.size > limit:
        batch.reject(0, too_long(file.size, limit), size=file.size)
        return
    blocks = []
    length = 0
    while block := stream.read():
        length += len(block)
        if length <= limit:
            blocks.append(block)
    if stream.damage:
        batch.reject(0, stream.damage.reason, size=stream.damage.lost)
    elif length > limit:
        batch.reject(0, too_long(length, limit), size=length)
    else:
        _add_text(batch, 0, b"".join(blocks))


def _reject_rest(passages: Passages, stream: Stream, piece: Piece, batch: Batch) -> None:
    position, damage = passages.damaged_at, stream.damage
    if position is not None and damage is not None:
        # Other pieces of a file whose disk fails are read by themselves.
        rest = None if damage.for_good or piece.stop is None else piece.stop - position
        batch.reject(position, damage.reason, size=damage.lost if rest is None else rest, more=True)


def _nothing_read(file: SourceFile, piece: Piece, reason: str) -> Records:
    lost = piece.text_bytes // (DECOMPRESSED if file.compression else 1)
    rejection = Rejection(
        file=file.url,
        position=f"{piece.start} to {'the end' if piece.stop is None else piece.stop}",
        reason=reason,
        documents=piece.documents or 1,
        bytes=min(lost, file.size),
        more=piece.documents is None,
    )
    return Records(rejected=[rejection])
