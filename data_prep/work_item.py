"""One piece to do, the names of its files, and the record that says it is done."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep import artifact
from data_prep.artifact import Counts, Shard
from data_prep.config import DataConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.plan import PieceKey, Plan
from data_prep.reading.files import SourceFile
from data_prep.reading.pieces import Piece, file_pieces

PIECES = "pieces"
SHARDS = "shards"


class PieceRecord(BaseModel):
    """What became of one piece. Its file marks the piece as complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_from: str = Field(description="digest of the settings and of the range of the file that it was made from")
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

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards that there are."""
        return tuple(shard for shard in (self.train, self.validation) if shard)

    @property
    def train_tokens(self) -> int:
        return self.train.tokens if self.train else 0


Records = dict[PieceKey, PieceRecord]


@dataclass(frozen=True)
class WorkItem:
    """A piece to do, and the folder that it is done into."""

    out_dir: Path
    plan_digest: str
    config: DataConfig
    source: int
    number: int
    file: SourceFile
    piece: Piece

    @property
    def key(self) -> PieceKey:
        return self.source, self.number

    @property
    def name(self) -> str:
        return piece_name(self.config.sources[self.source], self.source, self.number)

    @property
    def record_path(self) -> Path:
        return self.out_dir / PIECES / f"{self.name}.json"

    @property
    def rejected_path(self) -> Path:
        """The list of the piece's rejected documents; the file is there if there are any."""
        return self.record_path.with_suffix(".rejected.jsonl")

    @property
    def made_from(self) -> str:
        """SHA-256 of the settings, and of the file and the range of it, that the piece is made from."""
        file, piece = self.file, self.piece
        facts = (self.plan_digest, file.url, file.size, file.mark, piece.start, piece.stop, piece.problem)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether the piece is done, perhaps merged too; by another process, for one that is still at it."""
        return self.record_path.is_file() or (self.out_dir / artifact.FILE_NAME).is_file()

    def read_record(self) -> PieceRecord:
        """The record of the piece, which is done.

        Raises: DataError if it is damaged, or of a piece made with other settings or from another range of another
        file.
        """
        path = self.record_path
        try:
            record = PieceRecord.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DataError(f"{path}: not the record of a piece ({error.errors()[0]['msg']}); remove it") from error
        if record.made_from != self.made_from:
            raise DataError(
                f"{path}: made with other settings, or from another state of {self.file.url}, than is planned; remove "
                f"{self.out_dir} to begin anew"
            )
        return record

    def refuse_mended(self) -> None:
        """A file that could not be read when the work was planned, and can be now, has other pieces than were planned.

        Raises: DataError.
        """
        if self.piece.problem is None:
            return
        now = file_pieces(self.file, self.config.sources[self.source], self.config.piece_bytes)
        if now and now[0].problem is None:
            raise DataError(
                f"{self.file.url}: could not be read when the work was planned ({self.piece.problem}), and can be now; "
                f"remove {self.out_dir} to plan anew"
            )


def work_item(plan: Plan, config: DataConfig, out_dir: Path, key: PieceKey) -> WorkItem:
    """A piece of the plan as work into `out_dir`."""
    source, number = key
    planned = plan.sources[source].pieces[number]
    file = plan.sources[source].files[planned.file]
    return WorkItem(Path(out_dir), plan.digest, config, source, number, file, planned.piece)


def source_name(source: SourceConfig, index: int) -> str:
    """Short name of a source, unique by its number."""
    last = re.split(r"[/:]", source.label.rstrip("/*"))[-1].split(".")[0]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-")[:40]
    return f"{index:02d}-{slug or 'source'}"


def piece_name(source: SourceConfig, index: int, number: int) -> str:
    return f"{source_name(source, index)}-{number:06d}"
