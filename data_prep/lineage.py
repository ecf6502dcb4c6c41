"""Who made which shard, and how fast: beside the shards, in no digest."""

import json
from pathlib import Path

from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.work_item import SHARDS, Records, piece_name
from foundation.files import write_text

FILE_NAME = "lineage.json"


def write_lineage(config: DataConfig, records: Records, out_dir: Path) -> None:
    """Write who made which shard: the library that encoded it, how many documents were compared with the reference."""
    entries = {
        f"{SHARDS}/{piece_name(config.sources[source], source, number)}": {
            "encoder": record.encoder,
            "documents": record.counts.kept,
            "documents_checked": record.documents_checked,
            "tokens": sum(shard.tokens for shard in record.shards),
            "seconds": round(record.seconds, 3),
            "host": record.host,
        }
        for (source, number), record in records.items()
    }
    write_text(out_dir / FILE_NAME, json.dumps(entries, indent=1) + "\n")


def lineage_summary(out_dir: Path) -> dict[str, dict[str, int]]:
    """Shards, documents checked and tokens per worker and second of each encoder; nothing without lineage.json.

    Raises: DataError if that file is damaged.
    """
    path = out_dir / FILE_NAME
    try:
        entries = list(json.loads(path.read_text(encoding="utf-8")).values()) if path.is_file() else []
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: not JSON of a preparation ({error}); remove it, the shards do not need it") from error
    summary = {}
    for encoder in sorted({entry["encoder"] for entry in entries}):
        shards = [entry for entry in entries if entry["encoder"] == encoder]
        seconds = sum(shard["seconds"] for shard in shards)
        summary[encoder] = {
            "shards": len(shards),
            "documents_checked": sum(shard["documents_checked"] for shard in shards),
            "tokens_per_worker_second": round(sum(shard["tokens"] for shard in shards) / max(seconds, 1e-9)),
        }
    return summary
