"""What data preparation leaves: a set of shards, described in `shards.json`."""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.errors import DataError
from data_prep.shards import TOKEN_TYPES
from foundation.files import write_text

FILE_NAME = "shards.json"
SCHEMA_VERSION = 2


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Model):
    """One `.bin/.idx` pair, as Megatron-core's IndexedDataset reads it."""

    prefix: str = Field(description="path of the pair without its suffix, relative to the folder of shards.json")
    documents: int = Field(gt=0, description="documents in it")
    tokens: int = Field(gt=0, description="tokens in it, the EOS of every document included")
    digest: str = Field(description="SHA-256 of the .bin and the .idx file")


class Split(_Model):
    """The documents of all its shards, one shard after the other."""

    shards: tuple[Shard, ...] = Field(default=(), description="in the order of the documents")

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 over the shards' digests in order."""
        return hashlib.sha256("".join(shard.digest for shard in self.shards).encode()).hexdigest()


class Counts(_Model):
    """What became of the documents of a source or of a piece of one: those read are all accounted for."""

    documents: int = Field(ge=0, description="documents read")
    kept: int = Field(ge=0, description="documents in the shards")
    empty: int = Field(ge=0, description="documents without text, or only white space")
    rejected: int = Field(ge=0, description="documents that could not be read, see rejected.jsonl")
    surplus: int = Field(default=0, ge=0, description="documents left out since the tokens asked for were reached")

    @model_validator(mode="after")
    def _add_up(self) -> "Counts":
        if self.documents != self.kept + self.empty + self.rejected + self.surplus:
            raise ValueError(
                f"{self.documents} documents read, but {self.kept} kept + {self.empty} empty + {self.rejected} "
                f"rejected + {self.surplus} surplus"
            )
        return self

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            documents=self.documents + other.documents,
            kept=self.kept + other.kept,
            empty=self.empty + other.empty,
            rejected=self.rejected + other.rejected,
            surplus=self.surplus + other.surplus,
        )


class SourceShards(_Model):
    """What one source became."""

    name: str = Field(description="short name, unique in the set")
    source: str = Field(description="path or data set of the source, as configured")
    weight: float = Field(gt=0, description="share of the training rows, relative to the other sources")
    counts: Counts = Field(description="what became of its documents")
    bytes_per_token: float = Field(ge=0, description="UTF-8 bytes of text per token, EOS included, of all encoded")
    eos_tokens: int = Field(ge=0, description="EOS ids in the shards: one for each document kept")
    lengths: tuple[int, ...] = Field(description="documents kept by length: entry i counts 2^i to 2^(i+1) - 1 tokens")
    train: Split = Field(description="documents to train on")
    validation: Split = Field(description="held-out documents")

    @model_validator(mode="after")
    def _agree(self) -> "SourceShards":
        kept = self.train.documents + self.validation.documents
        for name, value in (("counts.kept", self.counts.kept), ("eos_tokens", self.eos_tokens)):
            if value != kept:
                raise ValueError(f"{name} is {value}, but the shards hold {kept} documents")
        return self


class ShardSet(_Model):
    """All shards of one preparation. Equal inputs give an equal set, byte for byte, whoever made which shard."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="version of this file's layout")
    tokenizer: str = Field(description="path of the tokenizer, as given")
    tokenizer_digest: str = Field(description="SHA-256 of the tokenizer's files")
    vocab_size: int = Field(gt=0, description="largest token id of the tokenizer + 1")
    eos_id: int = Field(ge=0, description="token id that ends every document")
    dtype: str = Field(description="numpy type of a stored token")
    row_length: int = Field(ge=2, description="length of a training row, in tokens")
    seed: int = Field(description="seed of the order of files and rows")
    settings_digest: str = Field(description="SHA-256 of the settings that the shards depend on")
    digest: str = Field(description="SHA-256 over the digests of all shards, source by source, train before validation")
    sources: tuple[SourceShards, ...] = Field(min_length=1, description="one entry per source, in their order")

    def save(self, folder: Path) -> Path:
        """Write shards.json into `folder`, atomically.

        Raises: DiskError if the disk is full.
        """
        path = folder / FILE_NAME
        write_text(path, json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
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
        for shard in shards.all_shards():
            shards._check_files(Path(folder), shard)
        return shards

    def all_shards(self) -> list[Shard]:
        """Every shard, in the order of the digest."""
        splits = (split for source in self.sources for split in (source.train, source.validation))
        return [shard for split in splits for shard in split.shards]

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

    def _check_files(self, folder: Path, shard: Shard) -> None:
        for suffix in (".bin", ".idx"):
            if not (folder / (shard.prefix + suffix)).is_file():
                raise DataError(f"{folder / (shard.prefix + suffix)}: missing; prepare the data again")
        size = (folder / (shard.prefix + ".bin")).stat().st_size
        expected = shard.tokens * TOKEN_TYPES[self.dtype]
        if size != expected:
            raise DataError(f"{folder / shard.prefix}.bin: {size:,} bytes, not {expected:,}; prepare the data again")


def set_digest(sources: tuple[SourceShards, ...]) -> str:
    """SHA-256 over the digests of all shards: the same whatever the tasks, workers and their order were."""
    splits = (split for source in sources for split in (source.train, source.validation))
    return hashlib.sha256("".join(shard.digest for split in splits for shard in split.shards).encode()).hexdigest()
