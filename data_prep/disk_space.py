"""Whether the shards that are still to be written fit on the disk."""

from data_prep.errors import DataError
from data_prep.plan import token_budgets
from data_prep.progress import Progress
from data_prep.shards import BYTES_PER_DOCUMENT, TOKEN_TYPES, token_type
from foundation.full_disk import free_bytes

RESERVE = 1.02  # records, plan and manifest beside the shards


def refuse_small_disk(progress: Progress) -> None:
    """Raises: DataError if what is still to be written does not fit on the disk."""
    need = bytes_to_write(progress)
    free = free_bytes(progress.out_dir)
    if need > free:
        raise DataError(
            f"{progress.out_dir}: about {need:,} bytes of shards are still to be written, {free:,} bytes are free; "
            "free some space, choose another folder (runs_dir), or lower data.tokens"
        )


def bytes_to_write(progress: Progress) -> int:
    """Estimate, from the plan's sample, of the bytes of the shards that are not there yet."""
    config = progress.config
    token_bytes = TOKEN_TYPES[token_type(progress.encoder.vocab_size)]
    total = 0.0
    for index, (source, budget) in enumerate(zip(progress.plan.sources, token_budgets(config), strict=True)):
        done = {number for of, number in progress.records if of == index}
        left = sum(one.piece.text_bytes for number, one in enumerate(source.pieces) if number not in done)
        tokens = left * source.tokens_per_byte
        if budget is not None:
            trained_on = 1 - config.held_out_fraction(config.sources[index])
            tokens = min(tokens, max(0, budget - progress.train_tokens(index)) / max(trained_on, 1e-9))
        documents = tokens * source.documents_per_byte / max(source.tokens_per_byte, 1e-9)
        total += tokens * token_bytes + documents * BYTES_PER_DOCUMENT
    return int(total * RESERVE)
