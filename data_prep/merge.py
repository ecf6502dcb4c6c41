"""The end of a preparation: which pieces count, the last one cut at the token budget, and shards.json."""

import itertools
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy

from data_prep.artifact import Shard, ShardSet, SourceShards, Split, set_digest
from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.lineage import write_lineage
from data_prep.plan import settings_digest, settings_of, token_budgets
from data_prep.progress import Progress
from data_prep.rejection_limit import refuse_rejected, total_counts
from data_prep.shards import ShardWriter, document_lengths, token_type
from data_prep.tokenizers.reference import Tokenizer
from data_prep.work_item import PIECES, SHARDS, PieceRecord, Records, source_name
from foundation.files import remove_leftovers

logger = logging.getLogger(__name__)


def merge(progress: Progress, tokenizer: str) -> ShardSet:
    """Put the pieces that count together in shards.json, and remove what is not needed any more.

    Raises: DataError if a piece is not done, more documents were rejected than is allowed, or a split is smaller than a
    row; DiskError.
    """
    config, encoder, out_dir = progress.config, progress.encoder, progress.out_dir
    records = progress.used_records()
    refuse_rejected(progress.plan, config, records, out_dir)
    sources = tuple(
        _source_shards(index, config, encoder, records, budget, out_dir)
        for index, budget in enumerate(token_budgets(config))
    )
    refuse_too_small(sources, config)
    shards = ShardSet(
        tokenizer=tokenizer,
        tokenizer_digest=encoder.digest,
        vocab_size=encoder.vocab_size,
        eos_id=encoder.eos_id,
        dtype=token_type(encoder.vocab_size),
        row_length=config.row_length,
        seed=config.seed,
        settings_digest=progress.plan.digest,
        digest=set_digest(sources),
        sources=sources,
    )
    write_lineage(config, records, out_dir)
    shards.save(out_dir)
    return clean(shards, out_dir)


def finish(config: DataConfig, encoder: Tokenizer, out_dir: Path) -> ShardSet:
    """The complete set in `out_dir`; what a merge that was killed left undone is done.

    Settings that no byte of the shards depends on (row length, weights) may be others than at the merge.

    Raises: DataError if it was made with other settings, or a split is smaller than a row of the new length.
    """
    shards = ShardSet.load(out_dir)
    if shards.settings_digest != settings_digest(settings_of(config, encoder)):
        raise DataError(f"{out_dir}: holds shards made with other settings; choose another folder, or remove it")
    sources = tuple(
        source.model_copy(update={"weight": settings.weight})
        for source, settings in zip(shards.sources, config.sources, strict=True)
    )
    refuse_too_small(sources, config)
    current = shards.model_copy(update={"row_length": config.row_length, "sources": sources})
    if current != shards:
        current.save(out_dir)
    return clean(current, out_dir)


def refuse_too_small(sources: Iterable[SourceShards], config: DataConfig) -> None:
    """Raises: DataError if nothing was found, or a split has less than one row."""
    sources = tuple(sources)
    need = config.row_length + 1
    if not any(source.counts.kept for source in sources):
        empty = sum(source.counts.empty for source in sources)
        names = ", ".join(source.source for source in sources)
        raise DataError(f"{names}: the corpus is empty ({empty} empty documents, none with text)")
    for source, settings in zip(sources, config.sources, strict=True):
        if settings.split != "validation" and source.train.tokens < need:
            raise DataError(
                f"source {source.source}: {source.train.tokens} training tokens, a row of {config.row_length} needs "
                f"{need}; add documents, lower row_length, or raise tokens"
            )
    held = [source.validation.tokens for source in sources]
    holds_out = any(config.held_out_fraction(source) > 0 for source in config.sources)
    if holds_out and max(held) < need:
        raise DataError(
            f"validation: {max(held)} held-out tokens, a row of {config.row_length} needs {need}; raise "
            f"validation_fraction ({config.validation_fraction}), add documents, or set it to 0 for no validation"
        )


def _source_shards(
    index: int, config: DataConfig, encoder: Tokenizer, records: Records, budget: int | None, out_dir: Path
) -> SourceShards:
    source = config.sources[index]
    of_source = {key: record for key, record in sorted(records.items()) if key[0] == index}
    tokens = sum(shard.tokens for record in of_source.values() for shard in record.shards)
    text_bytes = sum(record.text_bytes for record in of_source.values())
    if budget is not None and of_source:
        of_source = _cut_last(of_source, budget, encoder, out_dir)
    train_tokens = sum(record.train_tokens for record in of_source.values())
    if budget is not None and train_tokens < budget:
        logger.warning("%s: ended after %d of the %d tokens asked for", source.label, train_tokens, budget)
    lengths = itertools.zip_longest(*(record.lengths for record in of_source.values()), fillvalue=0)
    return SourceShards(
        name=source_name(source, index),
        source=source.label,
        weight=source.weight,
        counts=total_counts(of_source),
        bytes_per_token=round(text_bytes / max(1, tokens), 4),
        eos_tokens=sum(record.eos_tokens for record in of_source.values()),
        lengths=tuple(map(sum, lengths)),
        train=Split(shards=tuple(record.train for record in of_source.values() if record.train)),
        validation=Split(shards=tuple(record.validation for record in of_source.values() if record.validation)),
    )


def _cut_last(records: Records, budget: int, encoder: Tokenizer, out_dir: Path) -> Records:
    """The records of a source, the last one cut where the budget is reached."""
    last = max(records)
    before = sum(record.train_tokens for key, record in records.items() if key != last)
    return records | {last: cut_piece(records[last], budget - before, encoder, out_dir)}


def cut_piece(record: PieceRecord, tokens: int, encoder: Tokenizer, out_dir: Path) -> PieceRecord:
    """The piece with only the first training documents that reach `tokens`, in a shard of its own.

    Its held-out documents all stay.
    """
    if record.train is None or record.train.tokens <= tokens:
        return record
    prefix = out_dir / record.train.prefix
    lengths = document_lengths(prefix)
    ends = numpy.cumsum(lengths, dtype=numpy.int64)
    keep = int(numpy.searchsorted(ends, tokens)) + 1
    if keep == len(lengths):
        return record
    ids = numpy.memmap(f"{prefix}.bin", dtype=token_type(encoder.vocab_size), mode="r")[: int(ends[keep - 1])]
    with ShardWriter(prefix.with_name(f"{prefix.name}-first-{keep}"), encoder.vocab_size) as writer:
        writer.add(ids, lengths[:keep])
    shard = Shard(prefix=f"{SHARDS}/{writer.bin_path.stem}", documents=keep, tokens=writer.tokens, digest=writer.digest)
    gone = numpy.bincount(numpy.log2(lengths[keep:]).astype(numpy.int64), minlength=len(record.lengths))
    surplus = len(lengths) - keep
    counts = record.counts
    return record.model_copy(
        update={
            "train": shard,
            "counts": counts.model_copy(update={"kept": counts.kept - surplus, "surplus": surplus}),
            "eos_tokens": record.eos_tokens - surplus,
            "lengths": tuple(int(count) for count in numpy.array(record.lengths) - gone[: len(record.lengths)]),
        }
    )


def clean(shards: ShardSet, out_dir: Path) -> ShardSet:
    """Remove the pieces' records and the shards that are not of the set, now that shards.json says which are."""
    kept = {f"{shard.prefix}{suffix}" for shard in shards.all_shards() for suffix in (".bin", ".idx")}
    for path in (out_dir / SHARDS).iterdir():
        if f"{SHARDS}/{path.name}" not in kept:
            path.unlink(missing_ok=True)
    shutil.rmtree(out_dir / PIECES, ignore_errors=True)  # a late task may still write there; it ends as well
    remove_leftovers(out_dir)
    for path in out_dir.glob(".*.partial"):  # of an attempt by an earlier version
        path.unlink(missing_ok=True)
    return shards
