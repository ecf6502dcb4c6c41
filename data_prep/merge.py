"""The end of a preparation: which pieces count, the last one cut at the token budget, and shards.json."""

import itertools
import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy

from data_prep.artifact import Counts, Part, Shard, ShardSet, SourceShards, set_digest
from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.leftovers import remove_leftovers
from data_prep.plan import Plan, settings_digest, settings_of, token_budgets
from data_prep.reading.pieces import DECOMPRESSED
from data_prep.rejected import join_rejected
from data_prep.shards import ShardWriter, document_lengths, token_type, write_text
from data_prep.tokenizers.reference import Tokenizer
from data_prep.work import PIECES, SHARDS, PieceRecord, job_of, piece_name, read_record, source_name

logger = logging.getLogger(__name__)

REJECTED = "rejected.jsonl"
LINEAGE = "lineage.json"

Records = dict[tuple[int, int], PieceRecord]


def merge(plan: Plan, config: DataConfig, encoder: Tokenizer, tokenizer: str, out_dir: Path) -> ShardSet:
    """Put the pieces that count together in shards.json, and remove what is not needed any more.

    Raises: DataError if more documents were rejected than is allowed, or a part is smaller than a row.
    """
    records = used_records(plan, config, out_dir)
    write_rejected(config, records, out_dir)
    refuse_rejected(plan, config, records, out_dir)
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
        settings_digest=plan.digest,
        digest=set_digest(sources),
        sources=sources,
    )
    write_text(out_dir / LINEAGE, json.dumps(lineage(config, records), indent=1) + "\n")
    shards.save(out_dir)
    return clean(shards, out_dir)


def finish(config: DataConfig, encoder: Tokenizer, out_dir: Path) -> ShardSet:
    """The complete set in `out_dir`; what a merge that was killed left undone is done.

    Settings that no byte of the shards depends on (row length, weights) may be others than at the merge.

    Raises: DataError if it was made with other settings, or a part is smaller than a row of the new length.
    """
    shards = ShardSet.load(out_dir)
    if shards.settings_digest != settings_digest(settings_of(config, encoder)):
        raise DataError(f"{out_dir}: holds shards made with other settings; choose another folder, or remove it")
    sources = tuple(
        source.model_copy(update={"weight": wanted.weight})
        for source, wanted in zip(shards.sources, config.sources, strict=True)
    )
    refuse_too_small(sources, config)
    wanted = shards.model_copy(update={"row_length": config.row_length, "sources": sources})
    if wanted != shards:
        wanted.save(out_dir)
    return clean(wanted, out_dir)


def used_records(plan: Plan, config: DataConfig, out_dir: Path) -> Records:
    """The records of the pieces that count: all of a source, or the first ones that hold its tokens.

    Raises: DataError if one of them is not done.
    """
    used: Records = {}
    for index, (source, budget) in enumerate(zip(plan.sources, token_budgets(config), strict=True)):
        tokens = 0
        for number in range(len(source.pieces)):
            job = job_of(plan, config, out_dir, index, number)
            if not job.record_path.is_file():
                raise DataError(f"{job.record_path}: this piece is not done; run its task again")
            used[index, number] = record = read_record(job)
            tokens += record.train.tokens if record.train else 0
            if budget is not None and tokens >= budget:
                break
    return used


def short_source(plan: Plan, config: DataConfig, records: Records) -> tuple[int, int] | None:
    """(source, tokens that it lacks) of the first source whose pieces hold too few tokens and that has more files."""
    for index, (source, budget) in enumerate(zip(plan.sources, token_budgets(config), strict=True)):
        if budget is None or source.cut == len(source.files):
            continue
        have = sum(record.train.tokens for (of, _), record in records.items() if of == index and record.train)
        if have < budget:
            return index, budget - have
    return None


def refuse_rejected(plan: Plan, config: DataConfig, records: Records, out_dir: Path) -> None:
    """The limit is on documents; where their number is unknown (a stream cut short), on bytes of the input.

    Raises: DataError if too large a share was rejected.
    """
    counts = sum((record.counts for record in records.values()), NOTHING)
    lost = sum(record.bytes_lost for record in records.values())
    size = sum(stored_bytes(plan, *key) for key in records)
    limit = config.max_rejected_fraction
    if counts.rejected > limit * counts.documents or lost > limit * size:
        raise DataError(_rejected_message(counts, lost, config, out_dir))


def stored_bytes(plan: Plan, source: int, number: int) -> float:
    """About how many bytes of its file a piece is."""
    planned = plan.sources[source].pieces[number]
    file = plan.sources[source].files[planned.file]
    return planned.piece.text_bytes / (DECOMPRESSED if file.compression else 1)


def refuse_hopeless(plan: Plan, config: DataConfig, records: Records, out_dir: Path) -> None:
    """Stop early when the limit would be passed even if every document to come were good.

    Raises: DataError, with the rejected documents so far in rejected.jsonl.
    """
    counts = sum((record.counts for record in records.values()), NOTHING)
    to_come = sum(
        planned.piece.documents or source.documents_per_byte * planned.piece.text_bytes
        for index, source in enumerate(plan.sources)
        for number, planned in enumerate(source.pieces)
        if (index, number) not in records
    )
    # Twice: how many documents are to come is an estimate.
    if counts.rejected > config.max_rejected_fraction * (counts.documents + 2 * to_come) + 1:
        write_rejected(config, records, out_dir)
        raise DataError(_rejected_message(counts, 0, config, out_dir))


NOTHING = Counts(documents=0, kept=0, empty=0, rejected=0)


def _rejected_message(counts: Counts, lost: int, config: DataConfig, out_dir: Path) -> str:
    with (out_dir / REJECTED).open(encoding="utf-8") as stream:
        first = json.loads(next(stream))
    share = counts.rejected / max(1, counts.documents)
    bytes_lost = f", {lost:,} bytes of input lost" if lost else ""
    return (
        f"{counts.rejected:,} of {counts.documents:,} documents rejected ({share:.2%}{bytes_lost}), more than "
        f"data.max_rejected_fraction = {config.max_rejected_fraction:g}; the first: {first['file']}, "
        f"{first['position']}: {first['reason']}; all in {out_dir / REJECTED}; raise the limit, or mend or leave out "
        f"these files and remove {out_dir}"
    )


def write_rejected(config: DataConfig, records: Records, out_dir: Path) -> None:
    """rejected.jsonl out of the pieces' own, in the order of the pieces; absent if nothing was rejected."""
    names = (piece_name(config.sources[source], source, number) for source, number in sorted(records))
    join_rejected((out_dir / PIECES / f"{name}.rejected.jsonl" for name in names), out_dir / REJECTED)


def lineage(config: DataConfig, records: Records) -> dict:
    """Who made which shard: the library that encoded it, how many documents were compared with the reference."""
    return {
        f"{SHARDS}/{piece_name(config.sources[source], source, number)}": {
            "encoder": record.encoder,
            "documents": record.counts.kept,
            "documents_checked": record.documents_checked,
            "tokens": sum(shard.tokens for shard in (record.train, record.validation) if shard),
            "seconds": round(record.seconds, 3),
            "host": record.host,
        }
        for (source, number), record in records.items()
    }


def lineage_summary(out_dir: Path) -> dict:
    """Shards, documents checked and tokens per worker and second of each encoder; nothing without lineage.json.

    Raises: DataError if that file is damaged.
    """
    path = out_dir / LINEAGE
    try:
        made = json.loads(path.read_text(encoding="utf-8")).values() if path.is_file() else ()
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: not JSON of a preparation ({error}); remove it, the shards do not need it") from error
    summary = {}
    for encoder in sorted({shard["encoder"] for shard in made}):
        mine = [shard for shard in made if shard["encoder"] == encoder]
        seconds = sum(shard["seconds"] for shard in mine)
        summary[encoder] = {
            "shards": len(mine),
            "documents_checked": sum(shard["documents_checked"] for shard in mine),
            "tokens_per_worker_second": round(sum(shard["tokens"] for shard in mine) / max(seconds, 1e-9)),
        }
    return summary


def refuse_too_small(sources: Iterable[SourceShards], config: DataConfig) -> None:
    """Raises: DataError if nothing was found, or a part to train or validate on has less than one row."""
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
    wanted = any(config.held_out_fraction(source) > 0 for source in config.sources)
    if wanted and max(held) < need:
        raise DataError(
            f"validation: {max(held)} held-out tokens, a row of {config.row_length} needs {need}; raise "
            f"validation_fraction ({config.validation_fraction}), add documents, or set it to 0 for no validation"
        )


def _source_shards(
    index: int, config: DataConfig, encoder: Tokenizer, records: Records, budget: int | None, out_dir: Path
) -> SourceShards:
    source = config.sources[index]
    mine = [record for (of, _), record in sorted(records.items()) if of == index]
    tokens = sum(shard.tokens for record in mine for shard in (record.train, record.validation) if shard)
    bytes_per_token = sum(record.text_bytes for record in mine) / max(1, tokens)
    if budget is not None and mine:
        before = sum(record.train.tokens for record in mine[:-1] if record.train)
        mine[-1] = cut_piece(mine[-1], budget - before, encoder, out_dir)
    found = sum(record.train.tokens for record in mine if record.train)
    if budget is not None and found < budget:
        logger.warning("%s: ended after %d of the %d tokens asked for", source.label, found, budget)
    lengths = itertools.zip_longest(*(record.lengths for record in mine), fillvalue=0)
    return SourceShards(
        name=source_name(source, index),
        source=source.label,
        weight=source.weight,
        counts=sum((record.counts for record in mine), NOTHING),
        bytes_per_token=round(bytes_per_token, 4),
        eos_tokens=sum(record.eos_tokens for record in mine),
        lengths=tuple(map(sum, lengths)),
        train=Part(shards=tuple(record.train for record in mine if record.train)),
        validation=Part(shards=tuple(record.validation for record in mine if record.validation)),
    )


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
    shard = Shard(prefix=f"{SHARDS}/{writer.paths[0].stem}", documents=keep, tokens=writer.tokens, digest=writer.digest)
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
    wanted = {f"{shard.prefix}{suffix}" for shard in shards.all_shards() for suffix in (".bin", ".idx")}
    for path in (out_dir / SHARDS).iterdir():
        if f"{SHARDS}/{path.name}" not in wanted:
            path.unlink(missing_ok=True)
    shutil.rmtree(out_dir / PIECES, ignore_errors=True)  # a late task may still write there; it ends as well
    remove_leftovers(out_dir)
    return shards
