"""Forward passes in batches of a bounded number of tokens, with logits in bounded pieces."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LOGIT_ELEMENTS = 2**24
"""Logits that exist at a time: 64 MiB in float32. One long row's, with a vocabulary of 50k, take many gigabytes."""


def hidden_states(
    model: "PreTrainedModel", rows: np.ndarray, batch_tokens: int
) -> Iterator[tuple[slice, "torch.Tensor"]]:
    """The decoder's last states [batch, length, hidden] of `rows` [n, length], with the rows that they are of."""
    import torch

    step = max(1, batch_tokens // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        ids = torch.from_numpy(rows[part].astype(np.int64)).to(model.device)
        yield part, model.model(input_ids=ids, use_cache=False).last_hidden_state


def token_losses(model: "PreTrainedModel", rows: np.ndarray, batch_tokens: int) -> np.ndarray:
    """Loss in nats of every next token: [n, length] float64, from `rows` [n, length + 1] of token ids."""
    import torch
    from torch.nn.functional import cross_entropy

    losses = np.empty((len(rows), rows.shape[1] - 1))
    with torch.inference_mode():
        head = model.get_output_embeddings()
        positions = max(1, LOGIT_ELEMENTS // model.config.vocab_size)
        for part, states in hidden_states(model, rows[:, :-1], batch_tokens):
            targets = torch.from_numpy(rows[part, 1:].astype(np.int64)).to(model.device).flatten()
            pieces = zip(states.flatten(0, 1).split(positions), targets.split(positions), strict=True)
            flat = [cross_entropy(head(piece).float(), tokens, reduction="none") for piece, tokens in pieces]
            losses[part] = torch.cat(flat).view(states.shape[:2]).cpu().numpy()
    return losses


def cropped_losses(model: "PreTrainedModel", rows: np.ndarray, window: int, batch_tokens: int) -> np.ndarray:
    """`token_losses` of a model that is shown `window` tokens at most: [n, length] float64.

    Windows overlap by half: beyond the first one every token is predicted from window / 2 to `window` tokens before it.
    """
    length, step = rows.shape[1] - 1, max(1, window // 2)
    if length <= window:
        return token_losses(model, rows, batch_tokens)
    starts = [*range(0, length - window, step), length - window]
    cut = np.stack([rows[:, start : start + window + 1] for start in starts], axis=1)
    by_window = token_losses(model, cut.reshape(-1, window + 1), batch_tokens).reshape(len(rows), len(starts), window)
    losses = np.empty((len(rows), length))
    for number, start in reversed([*enumerate(starts)]):
        losses[:, start : start + window] = by_window[:, number]  # a token counts where the most stands before it
    return losses


def greedy_tokens(model: "PreTrainedModel", rows: np.ndarray, last: int, batch_tokens: int) -> np.ndarray:
    """The model's first choice at each of the `last` final positions, given all before: [n, last] from [n, length]."""
    import torch

    choices = np.empty((len(rows), last), dtype=np.int64)
    with torch.inference_mode():
        head = model.get_output_embeddings()
        for part, states in hidden_states(model, rows, batch_tokens):
            choices[part] = head(states[:, -last - 1 : -1]).argmax(-1).cpu().numpy()
    return choices
