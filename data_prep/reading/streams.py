"""The content of a file as a stream of blocks, decompressed, up to its end or to the place where it is damaged."""

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from data_prep.reading.files import SourceFile, StoredBytes, open_file

if TYPE_CHECKING:
    from zstandard import ZstdDecompressionObj

BLOCK = 2**20  # bytes, of decompressed content at most


@dataclass(frozen=True)
class Damage:
    """Why a stream ends before its end."""

    reason: str
    lost: int | None  # stored bytes that were not read, None if unknown
    for_good: bool = True  # nothing behind the place can be read; else a stream that is opened behind it can


class Stream(Protocol):
    """Content of a file from its first byte on; `damage` is set once `read` has met the place."""

    damage: Damage | None

    def __enter__(self) -> "Stream":
        """Closed when left."""

    def __exit__(self, *error: object) -> None: ...

    def skip(self, count: int) -> None:
        """Pass over `count` bytes of content, or as many as there are."""

    def read(self) -> bytes:
        """The next bytes, at most a few blocks; empty at the end and where the file is damaged."""


def open_stream(file: SourceFile) -> Stream:
    """The decompressed content of a file.

    Raises: what `open_file` raises.
    """
    stored = StoredStream(open_file(file), file.size)
    if file.compression is None:
        return stored
    return DecompressedStream(stored, GzipCodec() if file.compression == "gz" else ZstdCodec())


class StoredStream:
    """The bytes of a file as they are stored. A local read that fails is damage; a remote one that fails is raised."""

    def __init__(self, file: StoredBytes, size: int) -> None:
        self.damage: Damage | None = None
        self.position = 0  # bytes
        self._file = file
        self._size = size

    def __enter__(self) -> "StoredStream":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def skip(self, count: int) -> None:
        self.position += count
        self._file.seek(self.position)

    def read(self, size: int = BLOCK) -> bytes:
        try:
            content = self._file.read(size)
        except ConnectionError:
            raise
        except OSError as error:
            self.damage = Damage(f"cannot be read ({type(error).__name__}: {error})", self.left, for_good=False)
            return b""
        self.position += len(content)
        return content

    @property
    def left(self) -> int:
        """Stored bytes after the position."""
        return max(0, self._size - self.position)


class Member(Protocol):
    """One member of a gzip file, one frame of a zstd file, while it is decompressed."""

    @property
    def ended(self) -> bool: ...

    def decode(self, stored: bytes) -> tuple[bytes, bytes]:
        """Content of the first bytes of `stored`, and the stored bytes that are left."""


class Codec(Protocol):
    """A compressed format; members follow each other, and `padding` after the last one is no content."""

    name: str
    chunk: int
    """Stored bytes that are lost with a damaged place."""
    padding: bytes
    errors: tuple[type[Exception], ...]

    def member(self) -> Member:
        """The next member, from its start."""


class GzipCodec:
    """Gzip members, one after the other; zeros after them are padding."""

    name = "gzip"
    chunk = 64 * 1024
    padding = b"\0"
    errors: tuple[type[Exception], ...] = (zlib.error,)

    def member(self) -> Member:
        return GzipMember()


class GzipMember:
    """It gives a block at most at a time."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    @property
    def ended(self) -> bool:
        return self._decoder.eof

    def decode(self, stored: bytes) -> tuple[bytes, bytes]:
        content = self._decoder.decompress(stored, BLOCK)
        return content, self._decoder.unused_data if self.ended else self._decoder.unconsumed_tail


class ZstdCodec:
    """Zstandard frames, one after the other."""

    name = "zstd"
    chunk = 8 * 1024
    padding = b""

    def __init__(self) -> None:
        import zstandard

        self.errors: tuple[type[Exception], ...] = (zstandard.ZstdError,)
        self._decompressor = zstandard.ZstdDecompressor()

    def member(self) -> Member:
        return ZstdFrame(self._decompressor.decompressobj(), self.chunk)


class ZstdFrame:
    """The library cannot bound what one call gives, and four bytes can hold 128 KiB of a run: it feels the way."""

    def __init__(self, decoder: "ZstdDecompressionObj", longest_step: int) -> None:
        self._decoder = decoder
        self._longest_step = longest_step
        self._step = 512  # stored bytes

    @property
    def ended(self) -> bool:
        return self._decoder.eof

    def decode(self, stored: bytes) -> tuple[bytes, bytes]:
        step = self._step
        content = self._decoder.decompress(stored[:step]) if stored else b""
        self._step = max(16, step // 2) if len(content) > BLOCK else min(self._longest_step, 2 * step)
        unused = self._decoder.unused_data if self.ended else b""
        return content, unused + stored[step:]


class DecompressedStream:
    """What a compressed file holds. The same bytes come out however often and in whatever steps it is read."""

    def __init__(self, stored: StoredStream, codec: Codec) -> None:
        self.damage: Damage | None = None
        self._stored = stored
        self._codec = codec
        self._member: Member | None = None  # the one that is being read
        self._input = b""
        self._skipped = b""  # content read by `skip` beyond its goal
        self._members_read = 0

    def __enter__(self) -> "DecompressedStream":
        return self

    def __exit__(self, *error: object) -> None:
        self._stored.__exit__(*error)

    def skip(self, count: int) -> None:
        while count > 0 and (content := self.read()):
            self._skipped = content[count:]
            count -= len(content)

    def read(self) -> bytes:
        if self._skipped:
            content, self._skipped = self._skipped, b""
            return content
        while not self.damage:
            if not self._input:
                self._input = self._stored.read(self._codec.chunk)
            ended = not self._input
            if self._member is None:
                self._member = self._next_member()
            if self._member is None:
                if ended:
                    return self._end()
                continue
            content = self._decode(self._member)
            if content:
                return content
            if ended:  # and the member had nothing more to give
                return self._end()
        return b""

    def _next_member(self) -> Member | None:
        """The next member or frame, if more than padding is there."""
        if self._members_read:
            self._input = self._input.lstrip(self._codec.padding)
        return self._codec.member() if self._input else None

    def _decode(self, member: Member) -> bytes:
        try:
            content, rest = member.decode(self._input)
        except self._codec.errors as error:
            lost = len(self._input) + self._stored.left
            self.damage = Damage(f"damaged {self._codec.name} data ({error})", lost)
            return b""
        self._input = rest
        if member.ended:
            self._member = None
            self._members_read += 1
        return content

    def _end(self) -> bytes:
        if self._stored.damage:
            self.damage = self._stored.damage
        elif self._member is not None:
            self.damage = Damage(f"cut short: the {self._codec.name} data has no end", None)
        return b""
