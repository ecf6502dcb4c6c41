"""Held-out tokens: Megatron .bin/.idx files, and how much of them is scored."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.config import EvaluationConfig
from eval.errors import EvaluationError

if TYPE_CHECKING:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

log = logging.getLogger(__name__)

_MAGIC = b"MMIDIDX\x00\x00"
"""First bytes of a Megatron .idx file (`_INDEX_HEADER` of megatron.core.datasets.indexed_dataset)."""
_HAYSTACK_ROWS = 16
"""Rows of the longest length that a haystack of text is drawn from."""


def open_prefixes(prefixes: tuple[Path, ...]) -> list["IndexedDataset"]:
    """The data sets behind `prefixes` (paths without .bin and .idx).

    Raises: EvaluationError where a file is missing, of another format or cut short.
    """
    from model_surgery.megatron.cpu import forgo_compiler_if_no_gpu

    forgo_compiler_if_no_gpu()  # two seconds of the import below, for what reading files does not call
    with warnings.catch_warnings():
        # Megatron-core says at import what it would train faster with; here it only reads files.
        warnings.simplefilter("ignore", UserWarning)
        from megatron.core.datasets.indexed_dataset import IndexedDataset

    opened = []
    for prefix in prefixes:
        for ending in (".idx", ".bin"):
            if not Path(f"{prefix}{ending}").is_file():
                raise EvaluationError(f"validation: {prefix}{ending} does not exist; run the data stage first")
        with Path(f"{prefix}.idx").open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise EvaluationError(f"validation: {prefix}.idx: unknown format, not a Megatron index; write it again")
        try:
            dataset = IndexedDataset(str(prefix))
        except (AssertionError, ValueError, OSError, KeyError) as error:
            raise EvaluationError(f"validation: {prefix}.idx: unknown format: {error}") from None
        needed = int(dataset.sequence_lengths.sum()) * dataset.index.dtype_size
        size = Path(f"{prefix}.bin").stat().st_size
        if size < needed:
            raise EvaluationError(
                f"validation: {prefix}.bin has {size} bytes, its index wants {needed}; write it again"
            )
        opened.append(dataset)
    return opened


def count_tokens(datasets: list["IndexedDataset"]) -> int:
    """Tokens in all documents of all data sets."""
    return sum(int(dataset.sequence_lengths.sum()) for dataset in datasets)


def read_tokens(datasets: list["IndexedDataset"], limit: int) -> np.ndarray:
    """The first `limit` tokens of all documents joined in order, [limit] int64, or all where there are fewer."""
    parts: list[np.ndarray] = []
    missing = limit
    for dataset in datasets:
        for index in range(len(dataset)):
            if missing <= 0:
                break
            parts.append(dataset.get(index)[:missing])
            missing -= len(parts[-1])
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def check_held_out(config: EvaluationConfig, context: int, available: int) -> None:
    """Raises: EvaluationError if `available` held-out tokens hold no row of the longest length, or are all scored where
    LongRoPE2's search takes others.
    """
    factor = config.context_factors[-1]
    longest = factor * context
    if available < longest + 1:
        raise EvaluationError(
            f"validation: {available} tokens, but one row at {factor}x the context of {context} takes {longest + 1}; "
            f"prepare more validation text, or take {factor} out of context_factors"
        )
    scored, searched = min(scored_tokens(config, longest), available), searched_tokens(config, longest)
    if searched and available < scored + searched:
        raise EvaluationError(
            f"validation: {available} tokens, of which {scored} are scored; the search of longrope2 takes {searched} "
            "others; prepare more validation text, lower loss.tokens, or give longrope2.factors"
        )


def read_held_out(
    config: EvaluationConfig, prefixes: tuple[Path, ...], context: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that loss and haystack take, and those after them that LongRoPE2's search takes, int64.

    prefixes: of the shards. vocabulary: how many ids the models know.

    Raises: EvaluationError as `check_held_out` and `open_prefixes`, or for an id beyond the vocabulary.
    """
    longest = config.context_factors[-1] * context
    datasets = open_prefixes(prefixes)
    available = count_tokens(datasets)
    check_held_out(config, context, available)
    scored = scored_tokens(config, longest)
    tokens = read_tokens(datasets, scored + searched_tokens(config, longest))
    if available <= config.loss.tokens:
        log.warning("validation has %d tokens, loss.tokens asks for %d; all are scored", available, config.loss.tokens)
    if tokens.max() >= vocabulary:
        raise EvaluationError(
            f"validation: token id {tokens.max()}, but the model's vocabulary ends at {vocabulary - 1}; prepare the "
            "text with the model's own tokenizer"
        )
    return tokens[:scored], tokens[scored:]


def scored_tokens(config: EvaluationConfig, longest: int) -> int:
    """Held-out tokens that loss and haystack take where there are as many."""
    text = config.recall is not None and config.recall.haystack == "text"
    return max(config.loss.tokens, (_HAYSTACK_ROWS if text else 1) * longest) + 1


def searched_tokens(config: EvaluationConfig, longest: int) -> int:
    """Held-out tokens beyond the scored ones that LongRoPE2's search takes; none where needle samples judge it."""
    searches = "longrope2" in config.variants and config.longrope2.factors is None and config.context_factors[-1] > 1
    return max(config.longrope2.tokens, longest) + 1 if searches and config.recall is None else 0
