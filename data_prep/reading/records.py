"""What a reader gives: batches of documents, and what could not be read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

BATCH_DOCUMENTS = 1024
BATCH_BYTES = 2 * 2**20


class Rejection(BaseModel):
    """Documents that could not be read, with their place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(description="url of the file")
    position: str = Field(description="place in it, for people: byte of the decompressed file, or row")
    reason: str = Field(description="what is wrong, in one line")
    documents: int = Field(ge=1, description="documents lost; 1 where their number is unknown")
    bytes: int | None = Field(ge=0, description="input lost; bytes of the file, or of the documents; None if unknown")
    more: bool = Field(default=False, description="whether more documents are lost than are known and counted")


@dataclass
class Records:
    """Some documents of a piece, in order, and what was rejected among them."""

    texts: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # first byte in the decompressed file, or number of the row
    rejected: list[Rejection] = field(default_factory=list)


class Batch:
    """Documents on their way into `Records`; `place` says a position for people."""

    def __init__(self, url: str, max_document_bytes: int, place: Callable[[int], str]) -> None:
        self.place = place
        self._url = url
        self._max = max_document_bytes
        self._records = Records()
        self._size = 0

    @property
    def full(self) -> bool:
        records = self._records
        return self._size >= BATCH_BYTES or len(records.texts) + len(records.rejected) >= BATCH_DOCUMENTS

    def add(self, text: str, position: int, at_most: int) -> None:
        """Take a document in, unless it is too long; its UTF-8 takes `at_most` bytes."""
        if at_most > self._max and (length := len(text.encode())) > self._max:
            self.reject(position, too_long(length, self._max), size=length)
            return
        self._records.texts.append(text)
        self._records.positions.append(position)
        self._size += len(text)

    def reject(
        self,
        position: int,
        reason: str,
        *,
        size: int | None,
        documents: int = 1,
        place: str | None = None,
        more: bool = False,
    ) -> None:
        self._records.rejected.append(
            Rejection(
                file=self._url,
                position=place or self.place(position),
                reason=reason,
                documents=documents,
                bytes=size,
                more=more,
            )
        )

    def take(self) -> Iterator[Records]:
        """Its content, if there is any; the batch is empty then."""
        records, self._records, self._size = self._records, Records(), 0
        if records.texts or records.rejected:
            yield records


def too_long(length: int, limit: int) -> str:
    return f"{length:,} bytes long, over max_document_bytes ({limit:,})"


def one_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
