"""Loss against context length: mean next-token loss on rows of exactly s * C tokens, and along the position."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eval.errors import EvaluationError
from eval.statistics import mean_and_error
from eval.tasks.forward import cropped_losses, token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_BUCKETS = 64


@dataclass(frozen=True)
class LossByLength:
    """Loss in nats per token. stderr is over rows (None for a single one); edges [buckets + 1] are token positions."""

    value: float
    stderr: float | None
    rows: int
    edges: tuple[int, ...]
    by_position: tuple[float, ...]
    by_row: tuple[float, ...]


def rows_at(available: int, asked: int, length: int) -> int:
    """Rows of `length` predicted tokens: as many as the `asked` tokens make, at least one, no more than there are."""
    return min(max(1, asked // length), (available - 1) // length)


def cut_rows(tokens: np.ndarray, length: int, rows: int) -> np.ndarray:
    """Rows [rows, length + 1] from the start of `tokens`; each begins with the token that the one before ends with.

    So the same stretch of text is predicted at every length, once.
    """
    starts = np.arange(rows)[:, None] * length
    return tokens[starts + np.arange(length + 1)]


def bucket_edges(length: int) -> tuple[int, ...]:
    """Edges of at most 64 position buckets of equal width (within one token)."""
    buckets = min(MAX_BUCKETS, length)
    return tuple(round(length * index / buckets) for index in range(buckets + 1))


def loss_at_length(
    model: "PreTrainedModel", tokens: np.ndarray, length: int, rows: int, batch_tokens: int, window: int | None = None
) -> LossByLength:
    """Score `model` on `rows` rows of `length` tokens each, cut from `tokens`; it sees `window` tokens at most.

    Raises: EvaluationError for a loss that is no number: a mean of it would be none, and an answer by such logits wrong
    without saying why.
    """
    cut = cut_rows(tokens, length, rows)
    losses = cropped_losses(model, cut, window, batch_tokens) if window else token_losses(model, cut, batch_tokens)
    if (bad := ~np.isfinite(losses)).any():
        row, token = np.argwhere(bad)[0]
        raise EvaluationError(
            f"{model.config.name_or_path}: the loss of {bad.sum()} tokens at length {length} is no number, first that "
            f"of token {token} of row {row}; its weights are damaged, or it overflows: try dtype float32"
        )
    by_row = losses.mean(axis=1)
    value, stderr = mean_and_error(by_row)
    edges = bucket_edges(length)
    by_position = np.add.reduceat(losses.mean(axis=0), edges[:-1]) / np.diff(edges)
    return LossByLength(value, stderr, rows, edges, tuple(by_position.tolist()), tuple(by_row.tolist()))
