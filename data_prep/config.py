"""What data preparation is told: where the documents are and how they become rows."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SourceConfig(BaseModel):
    """One set of documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="a file, a folder (all its files of the format) or a glob")
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
        default="hash", description="hash: validation_fraction of its documents is held out; else all go to one part"
    )
    text_unit: Literal["file", "line", "paragraph"] = Field(
        default="paragraph", description="what one document is in a text file; paragraphs are parted by an empty line"
    )


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
    max_tokens: int | None = Field(
        default=None, gt=0, description="training tokens to make over all sources, split by weight; null: all there are"
    )
    seed: int = Field(default=1234, ge=0, lt=2**32, description="seed of the row order")
