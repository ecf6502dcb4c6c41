"""What data preparation is told: where the documents are and how they become shards."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

COMMIT = r"^[0-9a-f]{40}$"


class SourceConfig(BaseModel):
    """One set of documents: files (`path`) or a data set of the Hugging Face Hub (`hub`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(
        default=None,
        min_length=1,
        description="a file, a folder (all its files of the format) or a glob; local, or an fsspec URL such as s3://",
    )
    hub: str | None = Field(
        default=None, min_length=1, description="a data set of the Hugging Face Hub, such as HuggingFaceFW/fineweb"
    )
    hub_config: str | None = Field(default=None, description="configuration of the hub data set, such as sample-10BT")
    hub_split: str = Field(default="train", description="split of the hub data set")
    revision: str | None = Field(default=None, description="commit of the hub data set, 40 hexadecimal digits")
    format: Literal["auto", "jsonl", "parquet", "text"] = Field(
        default="auto", description="format of the files; auto: by suffix, .gz and .zst may follow it"
    )
    text_column: str = Field(
        default="text", min_length=1, description="column that holds the document (JSONL and Parquet)"
    )
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="share of the rows from this source, relative to the others"
    )
    split: Literal["hash", "train", "validation"] = Field(
        default="hash", description="hash: validation_fraction of its documents is held out; else all go to one split"
    )
    text_unit: Literal["file", "line", "paragraph"] = Field(
        default="paragraph", description="what one document is in a text file; paragraphs are parted by an empty line"
    )

    @model_validator(mode="after")
    def _one_place(self) -> "SourceConfig":
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path (files) or hub (a data set of the Hub)")
        if self.hub is None and (self.hub_config or self.revision):
            raise ValueError("hub_config and revision belong to a hub data set; name it with hub, or drop them")
        return self

    @property
    def label(self) -> str:
        """The source's place as configured, for messages."""
        return self.path or "/".join(filter(None, (f"hub:{self.hub}", self.hub_config, self.hub_split)))


class DataConfig(BaseModel):
    """All sources and how they are tokenized, split and cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="the document sets, blended by weight")
    tokenizer: str | None = Field(
        default=None,
        description="folder with tokenizer.json, or a tokenizer.json or tokenizer.model file; null: the model's own",
    )
    row_length: int = Field(ge=2, description="length of a training row, in tokens")
    validation_fraction: float = Field(
        default=0.01, ge=0, lt=1, description="share of documents held out, chosen by document hash"
    )
    tokens: int | None = Field(
        default=None, gt=0, description="training tokens to make over all sources, split by weight; null: all there are"
    )
    seed: int = Field(default=1234, ge=0, lt=2**32, description="seed of the order of files and rows")
    backend: Literal["auto", "reference", "fastokens", "gigatoken", "tokie"] = Field(
        default="auto",
        description="who encodes: the reference library (tokenizers, sentencepiece) or a fast one that must equal it; "
        "auto: the fastest installed one that does",
    )
    check_fraction: float = Field(
        default=0.001, ge=0, le=1, description="share of documents that a fast backend's ids are compared on all along"
    )
    max_rejected_fraction: float = Field(
        default=0.001, ge=0, lt=1, description="share of documents (and of bytes) that may be unreadable"
    )
    max_document_bytes: int = Field(
        default=10_000_000, gt=0, description="a longer document (UTF-8 bytes of its text) is rejected"
    )
    workers: int | None = Field(
        default=None, gt=0, description="processes that tokenize side by side; null: one for each core of the machine"
    )
    piece_bytes: int = Field(
        default=64 * 2**20, ge=1, description="text in one piece of work, which becomes one shard; bytes, about"
    )

    def held_out_fraction(self, source: SourceConfig) -> float:
        """Share of the source's documents that validation gets."""
        return {"hash": self.validation_fraction, "train": 0.0, "validation": 1.0}[source.split]
