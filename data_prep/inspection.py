"""Shards for human eyes: their statistics, and training rows as text."""

import tempfile
from pathlib import Path

import numpy

from data_prep.artifact import Shard, ShardSet
from data_prep.errors import DataError
from data_prep.lineage import lineage_summary
from data_prep.shards import pair_digest
from data_prep.tokenizers.reference import Tokenizer, load_tokenizer

BAR = 40  # characters of the longest bar of the histogram
EDGE = 40  # characters shown of either end of a document in a row


def statistics(shards: ShardSet, folder: Path) -> dict[str, object]:
    """Documents, tokens, bytes per token, EOS, lengths of every source, and who encoded them."""
    facts: dict[str, object] = {}
    for source in shards.sources:
        counts = source.counts
        facts[source.name] = (
            f"{counts.documents:,} documents = {counts.kept:,} kept + {counts.empty:,} empty + {counts.rejected:,} "
            f"rejected + {counts.surplus:,} surplus"
        )
        for name, split in (("train", source.train), ("validation", source.validation)):
            facts[f"{source.name} {name}"] = (
                f"{split.documents:,} documents, {split.tokens:,} tokens in {len(split.shards)} shards"
            )
        facts[f"{source.name} tokens"] = f"{source.bytes_per_token:.2f} bytes each; {source.eos_tokens:,} are EOS"
        facts[f"{source.name} lengths"] = histogram(source.lengths)
    for encoder, totals in lineage_summary(folder).items():
        facts[f"made by {encoder}"] = (
            f"{totals['shards']} pieces at {totals['tokens_per_worker_second']:,} tokens/s a worker; "
            f"{totals['documents_checked']:,} documents compared with the reference"
        )
    return facts


def histogram(lengths: tuple[int, ...]) -> list[str]:
    """Documents by length as bars; entry i counts documents of 2^i to 2^(i+1) - 1 tokens."""
    first = next((i for i, count in enumerate(lengths) if count), 0)
    most = max(lengths, default=0) or 1
    return [
        f"{2**i:>9,} to {2 ** (i + 1) - 1:>9,} tokens {count:>12,} {'#' * round(BAR * count / most)}".rstrip()
        for i, count in enumerate(lengths)
        if i >= first
    ]


def damaged_shards(shards: ShardSet, folder: Path) -> list[Shard]:
    """The shards whose bytes are not those recorded."""
    return [shard for shard in shards.all_shards() if pair_digest(Path(folder) / shard.prefix) != shard.digest]


def sample_rows(shards: ShardSet, folder: Path, count: int) -> list[str]:
    """The first training rows as text, a line for every document or part of one; token ids without the tokenizer.

    These are the rows of a run of a single epoch.
    """
    from data_prep.rows import build_rows

    decode = _decoder(shards)
    lines = []
    with tempfile.TemporaryDirectory() as cache:
        rows = build_rows(shards, Path(folder), train_rows=count, validation_rows=0, cache_dir=Path(cache))
        for number in range(count):
            tokens = rows.train[number]["tokens"].numpy()
            segments = numpy.split(tokens, numpy.flatnonzero(tokens == shards.eos_id) + 1)
            segments = [segment for segment in segments if len(segment)]
            lines.append(f"row {number}: {len(tokens)} tokens, {len(segments)} documents or parts of one")
            lines += [f"  {_shown(segment, shards.eos_id, decode)}" for segment in segments]
    return lines


def _decoder(shards: ShardSet) -> Tokenizer | None:
    """The tokenizer of the shards, if it is where it was and as it was."""
    try:
        tokenizer = load_tokenizer(Path(shards.tokenizer))
    except DataError:
        return None
    return tokenizer if tokenizer.digest == shards.tokenizer_digest else None


def _shown(segment: numpy.ndarray, eos_id: int, tokenizer: Tokenizer | None) -> str:
    ended = segment[-1] == eos_id
    ids = segment[:-1] if ended else segment
    text = repr(tokenizer.decode(ids.tolist()))[1:-1] if tokenizer else " ".join(map(str, ids))
    if len(text) > 2 * EDGE + 5:
        text = f"{text[:EDGE]} ... {text[-EDGE:]}"
    end = f"<EOS {eos_id}>" if ended else "(cut by the row's end)"
    return f"{len(segment):>6} tokens | {text} {end}"
