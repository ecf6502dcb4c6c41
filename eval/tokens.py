"""Held-out tokens from Megatron .bin/.idx files."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.errors import EvaluationError

if TYPE_CHECKING:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

_MAGIC = b"MMIDIDX\x00\x00"
"""First bytes of a Megatron .idx file (`_INDEX_HEADER` of megatron.core.datasets.indexed_dataset)."""


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
        found = Path(f"{prefix}.bin").stat().st_size
        if found < needed:
            raise EvaluationError(
                f"validation: {prefix}.bin has {found} bytes, its index wants {needed}; write it again"
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
