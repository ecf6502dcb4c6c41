"""Lines and paragraphs of a stream, each in the one piece in which its first byte lies."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from data_prep.reading.streams import Stream

LARGEST_READ = 8 * 2**20  # bytes, read at once for a long passage


class Separator(NamedTuple):
    """Where one passage ends and the next begins. The patterns match no more bytes than they need."""

    end: re.Pattern[bytes]  # what follows the last byte of a passage
    gap: re.Pattern[bytes] | None  # what may lie before the first byte of a passage
    lookback: int  # bytes of the longest end


LINE = Separator(end=re.compile(rb"\n"), gap=None, lookback=1)
# A paragraph ends where an empty line follows; empty lines may have a carriage return.
PARAGRAPH = Separator(end=re.compile(rb"\n\r?\n"), gap=re.compile(rb"(?:\r?\n)*+"), lookback=3)


class Passage(NamedTuple):
    """A line or paragraph without its line end."""

    position: int  # bytes from the start of the stream to its first byte
    content: bytes | None  # None if it is longer than the limit
    length: int  # bytes


class Passages:
    """The passages of [start, stop), `stop` None meaning the end: those whose first byte lies in it.

    Passages of consecutive ranges that cover a stream are those of the stream, each once, whatever the ranges are. At
    most `limit` bytes of a passage (and a few blocks) are held; a longer one is passed over. Where the stream is
    damaged, the last passage is dropped and `damaged_at` is its position, in one range only: that in which the passage
    begins. Of damage that is not for good, every range tells that meets it, since each loses passages of its own.
    """

    def __init__(self, stream: Stream, separator: Separator, start: int, stop: int | None, limit: int) -> None:
        self.damaged_at: int | None = None
        self._stream = stream
        self._separator = separator
        self._start, self._stop, self._limit = start, stop, limit
        self._base = max(0, start - separator.lookback)  # stream position of the buffer's first byte
        self._buffer = b""
        self._at = 0  # the buffer's bytes before it are done with
        self._ended = False
        stream.skip(self._base)

    def __iter__(self) -> Iterator[Passage]:
        if self._base > 0 and not self._next(keep=False)[2]:
            self._note_damage(-1)  # where that passage begins: in an earlier range
            return
        while True:
            self._skip_gap()
            position = self._base + self._at
            if self._stop is not None and position >= self._stop:
                return
            own = position >= self._start
            if self._at == len(self._buffer) and not self._fill():
                self._note_damage(position)
                return
            content, length, complete = self._next(keep=own)
            if not complete and self._stream.damage:
                self._note_damage(position)
                return
            if own:
                yield Passage(position, content, length)

    def _note_damage(self, position: int) -> None:
        damage = self._stream.damage
        if damage and (position >= self._start or not damage.for_good):
            self.damaged_at = max(position, self._start)

    def _next(self, *, keep: bool) -> tuple[bytes | None, int, bool]:
        """The passage at the buffer's place: its content, its length, and whether an end was found."""
        dropped = 0
        searched = 0  # bytes from the buffer's place on in which no end begins
        while True:
            end_span = self._find_end(self._at + searched)
            if end_span or self._ended:
                end, following = end_span or (len(self._buffer), len(self._buffer))
                length = dropped + end - self._at
                whole = keep and not dropped and length <= self._limit
                content = self._buffer[self._at : end] if whole else None
                self._at = following
                return content, length, end_span is not None
            # The last bytes may be the beginning of an end.
            searched = max(0, len(self._buffer) - self._at - self._separator.lookback + 1)
            if not keep or searched > self._limit:
                self._at += searched
                dropped += searched
                searched = 0
            self._fill()

    def _find_end(self, begin: int) -> tuple[int, int] | None:
        if self._separator is LINE:  # three times as fast as the pattern
            end = self._buffer.find(b"\n", begin)
            return None if end < 0 else (end, end + 1)
        match = self._separator.end.search(self._buffer, begin)
        return match.span() if match else None

    def _skip_gap(self) -> None:
        if self._separator.gap is None:
            return
        while True:
            if gap := self._separator.gap.match(self._buffer, self._at):
                self._at = gap.end()
            # One byte that is left may be the carriage return of another empty line.
            if len(self._buffer) - self._at > 1 or not self._fill():
                return

    def _fill(self) -> bool:
        """Read on, at least as much as is kept, so that a long passage is not copied over and over."""
        blocks = [self._buffer[self._at :]]
        least = min(max(1, len(blocks[0])), LARGEST_READ)
        read = 0
        while read < least and not self._ended:
            block = self._stream.read()
            blocks.append(block)
            read += len(block)
            self._ended = not block
        self._base += self._at
        self._at = 0
        self._buffer = b"".join(blocks)
        return read > 0
