"""The work on one piece: its documents become a pair of shards and, written last, a record that says so."""

import hashlib
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy

from data_prep.artifact import Counts, Shard
from data_prep.errors import DataError
from data_prep.reading.pieces import Piece
from data_prep.reading.readers import read_piece
from data_prep.reading.records import Records
from data_prep.rejected import RejectedWriter
from data_prep.shards import ShardWriter
from data_prep.tokenizers.checked import CheckedEncoder, Difference
from data_prep.work_item import SHARDS, PieceRecord, WorkItem
from foundation.errors import DiskError
from foundation.files import write_text

Meter = Callable[[int, int], None]
"""Called with (bytes of text, tokens) as they are done."""


def do_piece(item: WorkItem, encoder: CheckedEncoder, meter: Meter = lambda text_bytes, tokens: None) -> PieceRecord:
    """Read, encode and write one piece; its record appears last, when all the rest is on the disk.

    Raises: DataError for a file that changed; DiskError for a full disk; Difference if the fast backend is wrong. Then
    nothing of the piece stays.
    """
    try:
        return _do_piece(item, encoder, meter)
    except (DataError, DiskError, Difference):
        if not item.is_done():  # else the files are another process's
            for path in (*item.out_dir.glob(f"{SHARDS}/{item.name}-*"), item.rejected_path):
                path.unlink(missing_ok=True)
        raise


def _do_piece(item: WorkItem, encoder: CheckedEncoder, meter: Meter) -> PieceRecord:
    started = time.monotonic()
    source = item.config.sources[item.source]
    item.file.refuse_changed()
    item.refuse_mended()
    checked_before = encoder.documents_checked
    reference = encoder.reference
    prefix = item.out_dir / SHARDS / item.name
    with ExitStack() as stack:
        output = _Output(
            train=stack.enter_context(ShardWriter(_split_prefix(prefix, "train"), reference.vocab_size)),
            validation=stack.enter_context(ShardWriter(_split_prefix(prefix, "validation"), reference.vocab_size)),
            rejected=stack.enter_context(RejectedWriter(item.rejected_path)),
            fraction=item.config.held_out_fraction(source),
        )
        for records in read_piece(item.file, source, item.piece, item.config.max_document_bytes):
            text_bytes, tokens = output.add(records, encoder)
            meter(text_bytes, tokens)
        counts = output.counts(item.piece)
    record = PieceRecord(
        made_from=item.made_from,
        counts=counts,
        text_bytes=output.text_bytes,
        eos_tokens=output.eos_tokens,
        lengths=tuple(int(count) for count in numpy.trim_zeros(output.lengths, "b")),
        bytes_lost=output.rejected.bytes_lost,
        train=_shard(output.train),
        validation=_shard(output.validation),
        encoder=(encoder.backend or reference).name,
        documents_checked=encoder.documents_checked - checked_before,
        seconds=time.monotonic() - started,
        host=socket.gethostname(),
    )
    # A merge removes the folder; a task that comes late must not bring it back.
    write_text(item.record_path, record.model_dump_json() + "\n", make_folder=False)
    return record


def held_out(text: bytes, fraction: float) -> bool:
    """Whether a document (its UTF-8 bytes) is held out: its 64-bit BLAKE2b hash lies in the lowest `fraction`.

    A larger fraction holds out a superset of a smaller one.
    """
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") < fraction * 2**64


@dataclass
class _Output:
    """The two shards of a piece while they are written, and what is counted on the way."""

    train: ShardWriter
    validation: ShardWriter
    rejected: RejectedWriter
    fraction: float
    seen: int = 0
    empty: int = 0
    text_bytes: int = 0
    eos_tokens: int = 0
    lengths: numpy.ndarray = field(default_factory=lambda: numpy.zeros(40, numpy.int64))

    def add(self, records: Records, encoder: CheckedEncoder) -> tuple[int, int]:
        """Encode and write a batch of documents; its bytes of text and its tokens."""
        self.rejected.add(records.rejected)
        self.seen += len(records.texts) + sum(rejection.documents for rejection in records.rejected)
        texts = [text for text in records.texts if text and not text.isspace()]
        self.empty += len(records.texts) - len(texts)
        if not texts:
            return 0, 0
        encoded = [text.encode() for text in texts]
        held = numpy.fromiter((held_out(text, self.fraction) for text in encoded), bool, len(texts))
        text_bytes = sum(map(len, encoded))
        tokens = encoder.encode_flat(texts, encoded)
        lengths = numpy.diff(tokens.offsets) + 1
        eos_id = encoder.reference.eos_id
        ids = numpy.insert(tokens.ids, tokens.offsets[1:], eos_id)
        self._write(ids, lengths, held)
        self.text_bytes += text_bytes
        self.eos_tokens += int(numpy.count_nonzero(ids == eos_id))
        self.lengths += numpy.bincount(numpy.log2(lengths).astype(numpy.int64), minlength=len(self.lengths))
        return text_bytes, len(ids)

    def _write(self, ids: numpy.ndarray, lengths: numpy.ndarray, held: numpy.ndarray) -> None:
        if not held.any():
            self.train.add(ids, lengths)
            return
        of_token = numpy.repeat(held, lengths)
        self.train.add(ids[~of_token], lengths[~held])
        self.validation.add(ids[of_token], lengths[held])

    def counts(self, piece: Piece) -> Counts:
        """What became of the documents that the reader gave, against those that the shards count.

        Raises: DataError if a document was lost or an EOS stands inside one: no damage of the input can do that.
        """
        kept = self.train.documents + self.validation.documents
        rejected = self.rejected.documents
        if self.seen != kept + self.empty + rejected or piece.documents not in (None, self.seen):
            raise DataError(
                f"{self.train.bin_path}: {self.seen} documents read of {piece.documents or self.seen}, but {kept} "
                f"kept, {self.empty} empty, {rejected} rejected"
            )
        if self.eos_tokens != kept:
            raise DataError(
                f"{self.train.bin_path}: {self.eos_tokens} EOS ids for {kept} documents; the tokenizer makes EOS out "
                "of text, give one that does not"
            )
        return Counts(documents=self.seen, kept=kept, empty=self.empty, rejected=rejected)


def _split_prefix(prefix: Path, split: str) -> Path:
    return prefix.with_name(f"{prefix.name}-{split}")


def _shard(writer: ShardWriter) -> Shard | None:
    if not writer.documents:
        return None
    prefix = f"{SHARDS}/{writer.bin_path.stem}"
    return Shard(prefix=prefix, documents=writer.documents, tokens=writer.tokens, digest=writer.digest)
