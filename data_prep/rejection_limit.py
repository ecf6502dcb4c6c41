"""How many documents may be unreadable, and where the others of a preparation are listed."""

import json
from pathlib import Path

from data_prep.artifact import Counts
from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.plan import PieceKey, Plan
from data_prep.reading.pieces import DECOMPRESSED
from data_prep.rejected import join_rejected
from data_prep.work_item import PIECES, Records, piece_name

FILE_NAME = "rejected.jsonl"


def refuse_rejected(plan: Plan, config: DataConfig, records: Records, out_dir: Path) -> None:
    """Write rejected.jsonl, and refuse too many rejected documents.

    The limit is on documents; where their number is unknown (a stream cut short), on bytes of the input.

    Raises: DataError if too large a share was rejected; DiskError.
    """
    write_rejected(config, records, out_dir)
    counts = total_counts(records)
    lost = sum(record.bytes_lost for record in records.values())
    size = sum(_stored_bytes(plan, key) for key in records)
    limit = config.max_rejected_fraction
    if counts.rejected > limit * counts.documents or lost > limit * size:
        raise DataError(_message(counts, lost, config, out_dir))


def refuse_hopeless(plan: Plan, config: DataConfig, records: Records, out_dir: Path) -> None:
    """Stop early when the limit would be passed even if every document to come were good.

    Raises: DataError, with the rejected documents so far in rejected.jsonl; DiskError.
    """
    counts = total_counts(records)
    to_come = sum(
        planned.piece.documents or source.documents_per_byte * planned.piece.text_bytes
        for index, source in enumerate(plan.sources)
        for number, planned in enumerate(source.pieces)
        if (index, number) not in records
    )
    # Twice: how many documents are to come is an estimate.
    if counts.rejected > config.max_rejected_fraction * (counts.documents + 2 * to_come) + 1:
        write_rejected(config, records, out_dir)
        raise DataError(_message(counts, 0, config, out_dir))


def total_counts(records: Records) -> Counts:
    """What became of the documents of these pieces."""
    return sum((record.counts for record in records.values()), Counts(documents=0, kept=0, empty=0, rejected=0))


def write_rejected(config: DataConfig, records: Records, out_dir: Path) -> None:
    """rejected.jsonl out of the pieces' own, in the order of the pieces; absent if nothing was rejected."""
    names = (piece_name(config.sources[source], source, number) for source, number in sorted(records))
    join_rejected((out_dir / PIECES / f"{name}.rejected.jsonl" for name in names), out_dir / FILE_NAME)


def _stored_bytes(plan: Plan, key: PieceKey) -> float:
    """About how many bytes of its file a piece is."""
    source, number = key
    planned = plan.sources[source].pieces[number]
    file = plan.sources[source].files[planned.file]
    return planned.piece.text_bytes / (DECOMPRESSED if file.compression else 1)


def _message(counts: Counts, lost: int, config: DataConfig, out_dir: Path) -> str:
    path = out_dir / FILE_NAME
    with path.open(encoding="utf-8") as stream:
        first = json.loads(next(stream))
    share = counts.rejected / max(1, counts.documents)
    bytes_lost = f", {lost:,} bytes of input lost" if lost else ""
    return (
        f"{counts.rejected:,} of {counts.documents:,} documents rejected ({share:.2%}{bytes_lost}), more than "
        f"data.max_rejected_fraction = {config.max_rejected_fraction:g}; the first: {first['file']}, "
        f"{first['position']}: {first['reason']}; all in {path}; raise the limit, or mend or leave out "
        f"these files and remove {out_dir}"
    )
