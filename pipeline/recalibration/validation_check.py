"""Whether held-out rows are enough for the wanted validation; light enough for every command."""

from data_prep.artifact import ShardSet
from pipeline.errors import RecipeError
from pipeline.recalibration.recall_probe import SEQUENCE, SHORTEST_ROW
from pipeline.recipe.recalibration import RecalibrationConfig


def check_validation(config: RecalibrationConfig, shards: ShardSet) -> None:
    """Whether what is to be validated can be.

    Raises: RecipeError if the held-out documents hold no row of a wanted length, or rows are too short for recall.
    """
    most = max(source.validation.tokens for source in shards.sources)
    for multiple in config.validation_lengths:
        length = multiple * shards.row_length
        if most <= length:
            less = "" if multiple == 1 else f"take {multiple} out of recalibration.validation_lengths, or "
            raise RecipeError(
                f"validation at {multiple}x: a row of {length:,} tokens needs a source with {length + 1:,} held-out "
                f"tokens, the largest has {most:,}; {less}raise data.validation_fraction"
            )
    if config.recall_samples and shards.row_length < SHORTEST_ROW:
        raise RecipeError(
            f"recalibration.recall_samples = {config.recall_samples}: a sequence of {SEQUENCE} tokens does not fit "
            f"twice into a row of {shards.row_length}; use recall_samples = 0, or data.row_length = {SHORTEST_ROW}"
        )
