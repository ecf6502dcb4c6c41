"""What data preparation leaves: a set of shards, described in `shards.json`."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.errors import DataError
from data_prep.shards import write_text

FILE_NAME = "shards.json"
SCHEMA_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardPart(_Model):
    """One `.bin/.idx` pair; a part with no documents has no files."""

    prefix: str = Field(description="path of the pair without its suffix, relative to the folder of shards.json")
    documents: int = Field(ge=0, description="documents in it")
    tokens: int = Field(ge=0, description="tokens in it, the EOS of every document included")
    digest: str = Field(description="SHA-256 of the .bin and the .idx file; empty if there are none")


class SourceShards(_Model):
    """What one source became."""

    name: str = Field(description="short name, unique in the set")
    path: str = Field(description="path of the source, as configured")
    weight: float = Field(gt=0, description="share of the training rows, relative to the other sources")
    documents: int = Field(ge=0, description="documents kept: those of the two parts")
    empty_documents: int = Field(ge=0, description="documents skipped since they held no text")
    train: ShardPart = Field(description="documents to train on")
    validation: ShardPart = Field(description="held-out documents")


class ShardSet(_Model):
    """All shards of one preparation. Equal inputs give an equal set, byte for byte."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="version of this file's layout")
    tokenizer: str = Field(description="path of the tokenizer, as given")
    tokenizer_digest: str = Field(description="SHA-256 of the tokenizer's files")
    vocab_size: int = Field(gt=0, description="largest token id of the tokenizer + 1")
    eos_id: int = Field(ge=0, description="token id that ends every document")
    dtype: str = Field(description="numpy type of a stored token")
    row_length: int = Field(ge=2, description="length of a training row, in tokens")
    seed: int = Field(description="seed of the row order")
    sources: tuple[SourceShards, ...] = Field(min_length=1, description="one entry per source, in their order")

    def save(self, folder: Path) -> Path:
        """Write shards.json into `folder`, atomically.

        Raises: DataError if the disk is full.
        """
        path = folder / FILE_NAME
        write_text(path, json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path) -> "ShardSet":
        """Read shards.json from `folder` and see that every shard is there in its full size.

        Raises: DataError if it is missing, of another schema version, malformed, or a shard is missing or cut.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise DataError(f"{folder}: has no {FILE_NAME}; prepare the data first")
        shards = cls._parse(path)
        for source in shards.sources:
            for part in (source.train, source.validation):
                shards._check_files(Path(folder), part)
        return shards

    @classmethod
    def _parse(cls, path: Path) -> "ShardSet":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.get("schema_version") if isinstance(content, dict) else None
            if version != SCHEMA_VERSION:
                raise DataError(f"{path}: schema_version {version}, need {SCHEMA_VERSION}; prepare the data again")
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"{path}: {place}: {first['msg']}; prepare the data again") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not JSON ({error}); prepare the data again") from error

    def _check_files(self, folder: Path, part: ShardPart) -> None:
        import numpy

        if part.documents == 0:
            return
        for suffix in (".bin", ".idx"):
            if not (folder / (part.prefix + suffix)).is_file():
                raise DataError(f"{folder / (part.prefix + suffix)}: missing; prepare the data again")
        size = (folder / (part.prefix + ".bin")).stat().st_size
        expected = part.tokens * numpy.dtype(self.dtype).itemsize
        if size != expected:
            raise DataError(f"{folder / part.prefix}.bin: {size:,} bytes, not {expected:,}; prepare the data again")
