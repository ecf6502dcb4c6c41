"""Greedy answers to many prompts: in batches of equal length, what prompts begin with alike read once."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from eval.models import free_bytes
from eval.variants import forget_lengths

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from eval.kv_cache import RoomyCache

_MOST_ROWS = 64
_SHARED_AT_LEAST = 32
"""Tokens that a batch must begin with alike for them to be read apart."""
_MASK_ELEMENTS = 2**26
"""Of the mask that a piece behind earlier tokens takes: 64 MiB of booleans, 256 where a kernel wants numbers."""

Stop = Callable[[int, list[int]], bool]
"""Whether prompt i's answer may end after these tokens."""


def generate(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    batch_tokens: int,
    stop: Stop,
    reuse: bool = True,
) -> Iterator[list[tuple[int, list[int]]]]:
    """Number and answer of each prompt, batch by batch: the most likely token each time, `new_tokens` at most.

    batch_tokens: read in one forward pass. reuse: whether the beginnings that prompts share may be read once, and long
    prompts in pieces; not where a token's rotation depends on how much is read at once (dynamic NTK, LongRoPE2).
    Batching changes the logits by rounding alone.
    """
    trunk = _Trunk(model, max(map(len, prompts), default=0))
    for batch in batches(prompts, lambda length: _rows(model, length + new_tokens, batch_tokens, reuse)):
        yield _answer(model, prompts, batch, trunk if reuse else None, new_tokens, batch_tokens, stop)


def batches(prompts: Sequence[Sequence[int]], rows_at: Callable[[int], int]) -> Iterator[list[int]]:
    """Numbers of prompts of one length, `rows_at(length)` of them at most, in the order of their tokens.

    So neighbours begin alike as far as any two do.
    """
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), tuple(prompts[index])))
    for length, group in groupby(order, key=lambda index: len(prompts[index])):
        numbers, rows = list(group), rows_at(length)
        yield from (numbers[start : start + rows] for start in range(0, len(numbers), rows))


def shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that both begin with."""
    size = min(len(left), len(right))
    different = np.asarray(left[:size]) != np.asarray(right[:size])
    return int(different.argmax()) if different.any() else size


def cache_bytes(config: object, dtype_bytes: int) -> int:
    """Bytes of keys and values per token, over all layers."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * width * dtype_bytes


class _Trunk:
    """The tokens that the batches of the moment begin with, read once."""

    def __init__(self, model: "PreTrainedModel", capacity: int) -> None:
        from eval.kv_cache import RoomyCache

        self._model = model
        self._tokens: list[int] = []
        self.cache = RoomyCache(model.config.num_hidden_layers, capacity)

    def reach(self, tokens: Sequence[int], batch_tokens: int) -> None:
        """Makes the cache hold exactly these tokens."""
        import torch

        known = shared(self._tokens, tokens)
        self.cache.cut(known)
        self._tokens = list(tokens)
        if known < len(tokens):
            rest = torch.tensor([list(tokens[known:])], device=self._model.device)
            _read(self._model, self.cache, rest, batch_tokens)


def _rows(model: "PreTrainedModel", length: int, batch_tokens: int, pieces: bool) -> int:
    """Rows of a batch: by the memory that their keys and values may take, and where nothing is read in pieces by
    `batch_tokens`."""
    room = free_bytes(model.device) // (cache_bytes(model.config, model.dtype.itemsize) * length)
    return max(1, min(_MOST_ROWS, room, *([] if pieces else [batch_tokens // length])))


def _answer(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    batch: list[int],
    trunk: _Trunk | None,
    new_tokens: int,
    batch_tokens: int,
    stop: Stop,
) -> list[tuple[int, list[int]]]:
    """The answers of one batch of prompts of equal length."""
    import torch

    from eval.kv_cache import RoomyCache

    length = len(prompts[batch[0]])
    cache = RoomyCache(model.config.num_hidden_layers, length + new_tokens)
    with torch.inference_mode():
        start = 0
        if trunk is None:
            forget_lengths(model)
        else:
            start = min(shared(prompts[batch[0]], prompts[batch[-1]]), length - 1)
        if start >= _SHARED_AT_LEAST:
            trunk.reach(prompts[batch[0]][:start], batch_tokens)
            cache.start_from(trunk.cache, len(batch))
        else:
            start = 0
        rest = torch.tensor([list(prompts[index][start:]) for index in batch], device=model.device)
        states = _read(model, cache, rest, rest.numel() if trunk is None else batch_tokens)
        return _decode(model, cache, states, batch, new_tokens, stop)


def _read(model: "PreTrainedModel", cache: "RoomyCache", ids: "torch.Tensor", batch_tokens: int) -> "torch.Tensor":
    """Reads ids [rows, tokens] behind what is in the cache, in pieces; the state [rows, hidden] of the last token."""
    rows, total = ids.shape
    done = 0
    while done < total:
        past = cache.get_seq_length()
        piece = max(1, batch_tokens // rows)
        if past:
            piece = max(1, min(piece, _MASK_ELEMENTS // (rows * (past + piece))))
        part = ids[:, done : done + piece]
        states = model.model(input_ids=part, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        done += part.shape[1]
    return states


def _decode(
    model: "PreTrainedModel",
    cache: "RoomyCache",
    states: "torch.Tensor",
    batch: list[int],
    new_tokens: int,
    stop: Stop,
) -> list[tuple[int, list[int]]]:
    """One token after the other until every row stops; rows that have are dropped once they are half of all."""
    import torch

    head = model.get_output_embeddings()
    answers: dict[int, list[int]] = {index: [] for index in batch}
    rows, open_rows = list(batch), set(batch)
    for step in range(new_tokens):
        chosen = head(states).argmax(-1)
        for index, token in zip(rows, chosen.tolist(), strict=True):
            if index in open_rows:
                answers[index].append(token)
                if stop(index, answers[index]):
                    open_rows.discard(index)
        if not open_rows or step == new_tokens - 1:
            break
        if 2 * len(open_rows) <= len(rows):
            kept = torch.tensor([place for place, index in enumerate(rows) if index in open_rows], device=model.device)
            cache.select(kept)
            chosen, rows = chosen[kept], [index for index in rows if index in open_rows]
        states = _read(model, cache, chosen[:, None], len(rows))
    return list(answers.items())
