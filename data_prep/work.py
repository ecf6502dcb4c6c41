"""One piece of work: the documents of a piece become a pair of shards and a record that says so, written last."""

import hashlib
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep import artifact
from data_prep.artifact import Counts, Shard
from data_prep.config import DataConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.plan import Plan
from data_prep.reading.files import SourceFile
from data_prep.reading.pieces import Piece, file_pieces
from data_prep.reading.readers import read_piece
from data_prep.reading.records import Records
from data_prep.rejected import RejectedWriter
from data_prep.shards import ShardWriter, write_text
from data_prep.tokenizers.checked import CheckedEncoder, Difference

PIECES = "pieces"
SHARDS = "shards"

Progress = Callable[[int, int], None]
"""Told (bytes of text, tokens) as they are done."""


class PieceRecord(BaseModel):
    """What became of one piece. Its file marks the piece as complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_from: str = Field(description="digest of the settings and of the part of the file that it was made from")
    counts: Counts
    text_bytes: int = Field(description="UTF-8 bytes of the text encoded")
    eos_tokens: int = Field(description="EOS ids in the shards")
    lengths: tuple[int, ...] = Field(description="documents by length: entry i counts 2^i to 2^(i+1) - 1 tokens")
    bytes_lost: int = Field(description="bytes of input lost where the number of documents in them is unknown")
    train: Shard | None
    validation: Shard | None
    encoder: str = Field(description="library and version that encoded it")
    documents_checked: int = Field(description="documents whose ids were compared with the reference's")
    seconds: float
    host: str


@dataclass(frozen=True)
class Job:
    """A piece to do, and the folder that it is done into."""

    out_dir: Path
    plan_digest: str
    config: DataConfig
    source: int
    number: int
    file: SourceFile
    piece: Piece

    @property
    def name(self) -> str:
        return piece_name(self.config.sources[self.source], self.source, self.number)

    @property
    def record_path(self) -> Path:
        return self.out_dir / PIECES / f"{self.name}.json"


def job_of(plan: Plan, config: DataConfig, out_dir: Path, source: int, number: int) -> Job:
    """Piece `number` of a source of the plan."""
    planned = plan.sources[source].pieces[number]
    file = plan.sources[source].files[planned.file]
    return Job(Path(out_dir), plan.digest, config, source, number, file, planned.piece)


def made_from(job: Job) -> str:
    """SHA-256 of the settings, and of the file and the part of it, that a piece is made from."""
    file, piece = job.file, job.piece
    facts = (job.plan_digest, file.url, file.size, file.mark, piece.start, piece.stop, piece.problem)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def source_name(source: SourceConfig, index: int) -> str:
    """Short name of a source, unique by its number."""
    last = re.split(r"[/:]", source.label.rstrip("/*"))[-1].split(".")[0]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-")[:40]
    return f"{index:02d}-{slug or 'source'}"


def piece_name(source: SourceConfig, index: int, number: int) -> str:
    return f"{source_name(source, index)}-{number:06d}"


def read_record(job: Job) -> PieceRecord:
    """The record of a piece that is done.

    Raises: DataError if it is damaged, or of a piece made with other settings or from another part of another file.
    """
    path = job.record_path
    try:
        record = PieceRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: not the record of a piece ({error.errors()[0]['msg']}); remove it") from error
    if record.made_from != made_from(job):
        raise DataError(
            f"{path}: made with other settings, or from another state of {job.file.url}, than is planned; remove "
            f"{job.out_dir} to begin anew"
        )
    return record


def do_piece(job: Job, encoder: CheckedEncoder, progress: Progress = lambda text_bytes, tokens: None) -> PieceRecord:
    """Read, encode and write one piece; its record appears last, when all the rest is on the disk.

    Raises: DataError for a full disk or a file that changed; Difference if the fast backend is wrong. Then nothing of
    the piece stays.
    """
    try:
        return _do_piece(job, encoder, progress)
    except (DataError, Difference):
        if not done_by_another(job):
            for path in (*job.out_dir.glob(f"{SHARDS}/{job.name}-*"), rejected_path(job)):
                path.unlink(missing_ok=True)
        raise


def _do_piece(job: Job, encoder: CheckedEncoder, progress: Progress) -> PieceRecord:
    started = time.monotonic()
    source = job.config.sources[job.source]
    job.file.refuse_changed()
    refuse_mended(job)
    checked_before = encoder.documents_checked
    reference = encoder.reference
    prefix = job.out_dir / SHARDS / job.name
    with ExitStack() as stack:
        output = _Output(
            train=stack.enter_context(ShardWriter(_part(prefix, "train"), reference.vocab_size)),
            validation=stack.enter_context(ShardWriter(_part(prefix, "validation"), reference.vocab_size)),
            rejected=stack.enter_context(RejectedWriter(rejected_path(job))),
            fraction=job.config.held_out_fraction(source),
        )
        for records in read_piece(job.file, source, job.piece, job.config.max_document_bytes):
            progress(*output.add(records, encoder))
        counts = output.counts(job.piece)
    record = PieceRecord(
        made_from=made_from(job),
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
    write_text(job.record_path, record.model_dump_json() + "\n")
    return record


def done_by_another(job: Job) -> bool:
    """Whether another process has done the piece meanwhile, and perhaps merged it: then the files are its, not ours."""
    return job.record_path.is_file() or (job.out_dir / artifact.FILE_NAME).is_file()


def rejected_path(job: Job) -> Path:
    """The list of the piece's rejected documents; the file is there if there are any."""
    return job.record_path.with_suffix(".rejected.jsonl")


def refuse_mended(job: Job) -> None:
    """A file that could not be read when the work was planned, and can be now, has other pieces than were planned.

    Raises: DataError.
    """
    if job.piece.problem is None:
        return
    now = file_pieces(job.file, job.config.sources[job.source], job.config.piece_bytes)
    if now and now[0].problem is None:
        raise DataError(
            f"{job.file.url}: could not be read when the work was planned ({job.piece.problem}), and can be now; "
            f"remove {job.out_dir} to plan anew"
        )


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
                f"{self.train.paths[0]}: {self.seen} documents read of {piece.documents or self.seen}, but {kept} "
                f"kept, {self.empty} empty, {rejected} rejected"
            )
        if self.eos_tokens != kept:
            raise DataError(
                f"{self.train.paths[0]}: {self.eos_tokens} EOS ids for {kept} documents; the tokenizer makes EOS out "
                "of text, give one that does not"
            )
        return Counts(documents=self.seen, kept=kept, empty=self.empty, rejected=rejected)


def _part(prefix: Path, part: str) -> Path:
    return prefix.with_name(f"{prefix.name}-{part}")


def _shard(writer: ShardWriter) -> Shard | None:
    if not writer.documents:
        return None
    prefix = f"{SHARDS}/{writer.paths[0].stem}"
    return Shard(prefix=prefix, documents=writer.documents, tokens=writer.tokens, digest=writer.digest)
