"""Documents of all sources -> shards in one folder."""

import hashlib
import logging
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from data_prep.artifact import FILE_NAME, ShardPart, ShardSet, SourceShards
from data_prep.config import DataConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.shards import ShardWriter, output_folder
from data_prep.sources import check_source, documents
from data_prep.tokenizers import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

OUTPUTS = (FILE_NAME, "shard-[0-9]*.bin", "shard-[0-9]*.idx", ".shard*.partial")
BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 4_000_000


def run(config: DataConfig, *, tokenizer: Path, model_vocab_size: int, out_dir: Path) -> ShardSet:
    """Tokenize every document, end it with EOS, and write train and validation shards and shards.json to `out_dir`.

    A document is held out if its hash says so, hence it is never in both parts, whichever source or order it comes in.
    Equal inputs give equal bytes. If anything fails, no output stays in `out_dir`, nor `out_dir` if it was made here.

    Raises: DataError for everything that `check` refuses, an unreadable document, a corpus without tokens, a part that
    is smaller than one row, and a full disk.
    """
    check(config, tokenizer=tokenizer, model_vocab_size=model_vocab_size)
    encoder = load_tokenizer(tokenizer)
    budgets = token_budgets(config)
    with output_folder(Path(out_dir), OUTPUTS) as folder:
        sources = tuple(
            _write_source(source, config, encoder, budget, folder / f"shard-{index:02d}-{_slug(source.path)}")
            for index, (source, budget) in enumerate(zip(config.sources, budgets, strict=True))
        )
        _refuse_too_small(sources, config)
        shards = ShardSet(
            tokenizer=str(tokenizer),
            tokenizer_digest=encoder.digest,
            vocab_size=encoder.vocab_size,
            eos_id=encoder.eos_id,
            dtype=_dtype_name(encoder),
            row_length=config.row_length,
            seed=config.seed,
            sources=sources,
        )
        shards.save(folder)
    return shards


def check(config: DataConfig, *, tokenizer: Path, model_vocab_size: int) -> None:
    """Refuse what can be refused without tokenizing: files, columns, and a tokenizer that does not fit the model.

    Raises: DataError.
    """
    encoder = load_tokenizer(tokenizer)
    if encoder.vocab_size > model_vocab_size:
        raise DataError(
            f"tokenizer {tokenizer}: ids up to {encoder.vocab_size - 1}, but the model's vocabulary has "
            f"{model_vocab_size} entries; use the model's own tokenizer"
        )
    if all(source.split == "validation" for source in config.sources):
        raise DataError("data.sources: every source is held out (split: validation); none is left to train on")
    for source in config.sources:
        check_source(source)


def token_budgets(config: DataConfig) -> list[int | None]:
    """Training tokens to take from each source, `max_tokens` split by weight; None where there is no limit."""
    if config.max_tokens is None:
        return [None] * len(config.sources)
    weights = [0.0 if source.split == "validation" else source.weight for source in config.sources]
    shares = [config.max_tokens * weight / max(sum(weights), 1e-9) for weight in weights]
    return [max(1, round(share)) if share else None for share in shares]


def held_out_fraction(source: SourceConfig, config: DataConfig) -> float:
    """Share of the source's documents that validation gets."""
    return {"hash": config.validation_fraction, "train": 0.0, "validation": 1.0}[source.split]


def held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation: its 64-bit BLAKE2b hash lies in the lowest `fraction` of the range.

    A larger fraction holds out a superset of a smaller one.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _write_source(
    source: SourceConfig, config: DataConfig, encoder: Tokenizer, budget: int | None, prefix: Path
) -> SourceShards:
    empty = 0
    started = time.monotonic()
    logger.info("%s: tokenizing", source.path)
    train = ShardWriter(prefix.with_name(prefix.name + "-train"), encoder.vocab_size)
    validation = ShardWriter(prefix.with_name(prefix.name + "-validation"), encoder.vocab_size)
    fraction = held_out_fraction(source, config)
    bar = tqdm(desc=source.path, unit=" documents", disable=None)
    with bar, train, validation, closing(_encoded(source, encoder, bar)) as encoded:
        for text, ids in encoded:
            if not ids:
                empty += 1
                continue
            part = validation if held_out(text, fraction) else train
            part.add([*ids, encoder.eos_id])
            if budget is not None and train.tokens >= budget:
                break
    tokens = train.tokens + validation.tokens
    seconds = time.monotonic() - started
    logger.info(
        "%s: %d training and %d validation tokens, %.0f tokens/s",
        source.path,
        train.tokens,
        validation.tokens,
        tokens / seconds,
    )
    if budget is not None and train.tokens < budget:
        logger.warning("%s: ended after %d of the %d tokens asked for", source.path, train.tokens, budget)
    return SourceShards(
        name=prefix.name.removeprefix("shard-"),
        path=source.path,
        weight=source.weight,
        documents=train.documents + validation.documents,
        empty_documents=empty,
        train=_part(train),
        validation=_part(validation),
    )


def _encoded(source: SourceConfig, encoder: Tokenizer, bar: tqdm) -> Iterator[tuple[str, list[int]]]:
    """Every document with its ids; no ids for one that is empty or only white space."""
    tokens = 0
    started = time.monotonic()
    for batch in _batches(documents(source)):
        encoded = iter(encoder.encode_batch([text for text in batch if text.strip()]))
        for text in batch:
            ids = next(encoded) if text.strip() else []
            tokens += len(ids)
            yield text, ids
        bar.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
        bar.update(len(batch))


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _refuse_too_small(sources: tuple[SourceShards, ...], config: DataConfig) -> None:
    # A row's labels are its tokens shifted by one, so a row takes one token more than its length.
    need = config.row_length + 1
    if not any(source.documents for source in sources):
        empty = sum(source.empty_documents for source in sources)
        names = ", ".join(source.path for source in sources)
        raise DataError(f"{names}: the corpus is empty ({empty} empty documents, none with text)")
    for source, settings in zip(sources, config.sources, strict=True):
        if settings.split != "validation" and source.train.tokens < need:
            raise DataError(
                f"source {source.path}: {source.train.tokens} training tokens, a row of {config.row_length} needs "
                f"{need}; add documents, lower row_length, or raise max_tokens"
            )
    held = [source.validation.tokens for source in sources]
    wanted = any(held_out_fraction(source, config) > 0 for source in config.sources)
    if wanted and max(held) < need:
        raise DataError(
            f"validation: {max(held)} held-out tokens, a row of {config.row_length} needs {need}; raise "
            f"validation_fraction ({config.validation_fraction}), add documents, or set it to 0 for no validation"
        )


def _part(writer: ShardWriter) -> ShardPart:
    return ShardPart(
        prefix=writer.paths[0].stem, documents=writer.documents, tokens=writer.tokens, digest=writer.digest
    )


def _slug(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(path).name.split(".")[0]).strip("-")[:40] or "source"


def _dtype_name(encoder: Tokenizer) -> str:
    from data_prep.megatron import DType

    return DType.optimal_dtype(encoder.vocab_size).__name__
