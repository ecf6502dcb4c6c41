"""The plan of a preparation: its files in order, cut into pieces. It follows from inputs and settings alone."""

import hashlib
import itertools
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from data_prep.config import DataConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.estimate import densities
from data_prep.reading.files import SourceFile
from data_prep.reading.fingerprint import below_common_folder
from data_prep.reading.pieces import Piece, file_pieces
from data_prep.reading.sources import source_files
from data_prep.tokenizers.reference import Tokenizer
from foundation.files import create_text, write_text

logger = logging.getLogger(__name__)

FILE_NAME = "plan.json"
SCHEMA_VERSION = 1
MARGIN = 1.05  # more text than the sample says is needed: a second round of work costs more than a few pieces


PieceKey = tuple[int, int]
"""Number of a source, and of a piece in it."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedPiece(_Model):
    """A piece of one of the source's files."""

    file: int = Field(description="number of the file in the source's order")
    piece: Piece


class SourcePlan(_Model):
    """The files of a source in their order, and the pieces of the first `cut` of them."""

    files: tuple[SourceFile, ...]
    cut: int = Field(description="files that are cut into pieces; more follow if they do not hold the tokens asked for")
    pieces: tuple[PlannedPiece, ...]
    tokens_per_byte: float = Field(description="tokens per byte of a piece's text, on a sample")
    documents_per_byte: float = Field(description="documents per byte of a piece's text, on a sample")

    @property
    def text_bytes(self) -> int:
        return sum(planned.piece.text_bytes for planned in self.pieces)


class Plan(_Model):
    """Everything that must be done, for every task of a preparation the same."""

    schema_version: int = SCHEMA_VERSION
    settings: dict = Field(description="the settings that the shards depend on")
    sources: tuple[SourcePlan, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the settings: what the shards depend on besides the documents."""
        return settings_digest(self.settings)

    def pieces(self, task: int = 0, of: int = 1) -> Iterator[PieceKey]:
        """The pieces of task `task` of `of`: every `of`-th, source after source, whether done or not."""
        keys = ((source, number) for source, one in enumerate(self.sources) for number in range(len(one.pieces)))
        return itertools.islice(keys, task, None, of)

    def save(self, folder: Path) -> None:
        """Write plan.json into `folder`, atomically, over one that is there."""
        write_text(folder / FILE_NAME, self.model_dump_json() + "\n", make_folder=False)

    def save_first(self, folder: Path) -> "Plan":
        """Write plan.json into `folder` unless somebody else has by now; the plan that is there."""
        path = folder / FILE_NAME
        return self if create_text(path, self.model_dump_json() + "\n") else load(path)


def settings_of(config: DataConfig, encoder: Tokenizer) -> dict:
    """The settings that decide every byte of the shards; others only say who does the work, and how it is used."""
    deciding = {"validation_fraction", "seed", "tokens", "max_document_bytes", "piece_bytes"}
    settings = config.model_dump(mode="json", include=deciding)
    # Weights decide how a token budget is split, and nothing else here.
    sources = [
        source.model_dump(mode="json", exclude=set() if config.tokens else {"weight"}) for source in config.sources
    ]
    return {**settings, "sources": sources, "tokenizer": encoder.digest, "eos_id": encoder.eos_id}


def settings_digest(settings: dict) -> str:
    """SHA-256 of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def load_or_make(folder: Path, config: DataConfig, encoder: Tokenizer) -> Plan:
    """The plan in `folder`, or a new one, saved there. Of tasks that make it at the same time the first one's counts.

    Raises: DataError if the plan there was made with other settings, or a source has no documents' files.
    """
    path = folder / FILE_NAME
    settings = settings_of(config, encoder)
    if path.is_file():
        plan = load(path)
        _refuse_other(path, plan.settings, settings)
        return plan
    logger.info("planning the pieces of %d sources", len(config.sources))
    budgets = token_budgets(config)
    sources = tuple(
        _plan_source(source, config, encoder, budget) for source, budget in zip(config.sources, budgets, strict=True)
    )
    plan = Plan(settings=settings, sources=sources).save_first(folder)
    _refuse_other(path, plan.settings, settings)
    return plan


def refuse_other_files(plan: Plan, config: DataConfig, out_dir: Path) -> None:
    """Raises: DataError if a source has other files now than when the work was planned; the first is named."""
    for source, planned in zip(config.sources, plan.sources, strict=True):
        before = {file.url: file for file in planned.files}
        now = {file.url: file for file in source_files(source)}
        for url in sorted(before.keys() | now.keys()):
            if before.get(url) != now.get(url):
                change = "is new" if url not in before else "is gone" if url not in now else "has changed"
                raise DataError(f"{url}: {change} since the work was planned; remove {out_dir} to begin anew")


def load(path: Path) -> Plan:
    """Raises: DataError if the file is damaged or of another version."""
    try:
        return Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"{path}: {place}: {first['msg']}; remove {path.parent.parent} to begin anew") from error


def extend(plan: Plan, index: int, config: DataConfig, short: int, folder: Path) -> Plan:
    """The plan with more files of source `index` cut into pieces, enough for `short` more tokens; saved.

    The pieces there were stay the first ones, so that nothing done is lost.
    """
    source = plan.sources[index]
    text_bytes = MARGIN * short / max(source.tokens_per_byte, 1e-9)
    cut, pieces = _cut(source.files, source.cut, config.sources[index], config.piece_bytes, text_bytes)
    longer = source.model_copy(update={"cut": cut, "pieces": (*source.pieces, *pieces)})
    sources = (*plan.sources[:index], longer, *plan.sources[index + 1 :])
    extended = plan.model_copy(update={"sources": sources})
    extended.save(folder)
    return extended


def token_budgets(config: DataConfig) -> list[int | None]:
    """Training tokens to take from each source, `tokens` split by weight; None where there is no limit."""
    if config.tokens is None:
        return [None] * len(config.sources)
    weights = [0.0 if source.split == "validation" else source.weight for source in config.sources]
    shares = [config.tokens * weight / max(sum(weights), 1e-9) for weight in weights]
    return [max(1, round(share)) if share else None for share in shares]


def ordered(files: tuple[SourceFile, ...], seed: int) -> tuple[SourceFile, ...]:
    """Files in an order drawn by the seed, so that the first ones are a fair sample of all.

    The order follows from the names below the files' common folder: it is the same wherever the folder lies.
    """
    names = below_common_folder([file.url for file in files])
    drawn = [hashlib.blake2b(f"{seed} {name}".encode()).digest() for name in names]
    return tuple(file for _, file in sorted(zip(drawn, files, strict=True), key=lambda pair: pair[0]))


def _plan_source(source: SourceConfig, config: DataConfig, encoder: Tokenizer, budget: int | None) -> SourcePlan:
    files = ordered(source_files(source), config.seed)
    cut, pieces = _cut(files, 0, source, config.piece_bytes, 0.0 if budget else math.inf)
    tokens_per_byte, documents_per_byte = next(
        filter(any, (densities(files[one.file], source, one.piece, config, encoder) for one in pieces)), (0.0, 0.0)
    )
    if budget:
        held_in = max(1.0 - config.held_out_fraction(source), 1e-9)
        have = sum(planned.piece.text_bytes for planned in pieces)
        needed = MARGIN * budget / held_in / max(tokens_per_byte, 1e-9) - have
        cut, more = _cut(files, cut, source, config.piece_bytes, needed)
        pieces = (*pieces, *more)
    return SourcePlan(
        files=files,
        cut=cut,
        pieces=pieces,
        tokens_per_byte=tokens_per_byte,
        documents_per_byte=documents_per_byte,
    )


def _cut(
    files: tuple[SourceFile, ...], first: int, source: SourceConfig, piece_bytes: int, needed: float
) -> tuple[int, tuple[PlannedPiece, ...]]:
    """Cut files from number `first` on into pieces, at least one of them, until they hold `needed` bytes of text."""
    pieces: list[PlannedPiece] = []
    have = 0
    number = first
    remaining = tqdm(files[first:], desc="planning", unit=" files", disable=None, leave=False, delay=2)
    for file in remaining:
        if (pieces and have >= needed) or needed < 0:
            break
        for piece in file_pieces(file, source, piece_bytes):
            pieces.append(PlannedPiece(file=number, piece=piece))
            have += piece.text_bytes
        number += 1
    return number, tuple(pieces)


def _refuse_other(path: Path, recorded: dict, asked: dict) -> None:
    for name in sorted(recorded.keys() | asked.keys()):
        old, new = recorded.get(name), asked.get(name)
        if old != new:
            raise DataError(
                f"{path}: planned with {name} {_short(old)}, now it is {_short(new)}; give the old settings, or remove "
                f"{path.parent.parent} to begin anew"
            )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
