"""The content of a file as a stream of blocks, decompressed, up to its end or to the place where it is damaged."""

import zlib
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from data_prep.reading.files import SourceFile, open_file

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

    def __init__(self, file: BinaryIO, size: int) -> None:
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


class Decoder(Protocol):
    """One member of a gzip file, one frame of a zstd file: as in the standard library's zlib."""

    eof: bool
    unused_data: bytes


class GzipCodec:
    """Gzip members, one after the other; zeros after them are padding."""

    name = "gzip"
    chunk = 64 * 1024  # stored bytes that are lost with a damaged place
    padding = b"\0"
    errors: tuple[type[Exception], ...] = (zlib.error,)

    def decoder(self) -> Decoder:
        return zlib.decompressobj(wbits=31)

    def decode(self, decoder: Decoder, stored: bytes) -> tuple[bytes, bytes]:
        """What `stored` holds, as much as a block of it, and the stored bytes that are left."""
        content = decoder.decompress(stored, BLOCK)
        return content, decoder.unused_data if decoder.eof else decoder.unconsumed_tail


class ZstdCodec:
    """Zstandard frames, one after the other."""

    name = "zstd"
    chunk = 8 * 1024
    padding = b""

    def __init__(self) -> None:
        import zstandard

        self.errors: tuple[type[Exception], ...] = (zstandard.ZstdError,)
        self._decompressor = zstandard.ZstdDecompressor()
        # The library cannot bound what one call gives, and four bytes can hold 128 KiB of a run: feel the way.
        self._step = 512

    def decoder(self) -> Decoder:
        return self._decompressor.decompressobj()

    def decode(self, decoder: Decoder, stored: bytes) -> tuple[bytes, bytes]:
        """What a step of `stored` holds, and the stored bytes that are left."""
        step = self._step
        content = decoder.decompress(stored[:step]) if stored else b""
        self._step = max(16, step // 2) if len(content) > BLOCK else min(self.chunk, 2 * step)
        return content, (decoder.unused_data or b"") + stored[step:]


class DecompressedStream:
    """What a compressed file holds. The same bytes come out however often and in whatever steps it is read."""

    def __init__(self, stored: StoredStream, codec: GzipCodec | ZstdCodec) -> None:
        self.damage: Damage | None = None
        self._stored = stored
        self._codec = codec
        self._decoder: Decoder | None = None
        self._input = b""
        self._skipped = b""  # content read by `skip` beyond its goal
        self._members = 0

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
            if self._decoder is None and not self._begin():
                if ended:
                    return self._end()
                continue
            content = self._decode()
            if content:
                return content
            if ended:  # and the decoder had nothing more to give
                return self._end()
        return b""

    def _begin(self) -> bool:
        """Begin the next member or frame, if more than padding is there."""
        if self._members:
            self._input = self._input.lstrip(self._codec.padding)
        if self._input:
            self._decoder = self._codec.decoder()
        return bool(self._input)

    def _decode(self) -> bytes:
        try:
            content, rest = self._codec.decode(self._decoder, self._input)
        except self._codec.errors as error:
            lost = len(self._input) + self._stored.left
            self.damage = Damage(f"damaged {self._codec.name} data ({error})", lost)
            return b""
        self._input = rest
        if self._decoder.eof:
            self._decoder = None
            self._members += 1
        return content

    def _end(self) -> bytes:
        if self._stored.damage:
            self.damage = self._stored.damage
        elif self._decoder is not None:
            self.damage = Damage(f"cut short: the {self._codec.name} data has no end", None)
        return b""
