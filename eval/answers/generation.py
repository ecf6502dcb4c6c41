"""Greedy answers to many prompts: in batches of equal length, what prompts begin with alike read once."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from eval.device import free_bytes
from eval.models import head_dim_of
from eval.variants.loading import forget_lengths

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from eval.answers.kv_cache import RoomyCache

_MOST_ROWS = 64

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
    Batching changes the logits by rounding alone. Where the memory holds no beginning beside a prompt of its own, each
    prompt is read from its start.
    """
    import torch

    from eval.answers.piece_attention import attending_in_pieces

    longest = max(map(len, prompts), default=0)
    fitting = _fitting(model, longest + new_tokens)
    trunk = _Trunk(model, longest) if reuse and fitting >= 2 else None
    rows = max(1, min(_MOST_ROWS, fitting - 1 if trunk else fitting))
    piece = batch_tokens if reuse else None
    with torch.inference_mode(), attending_in_pieces(model):
        for batch in batches(prompts, rows):
            # Nothing here holds on to the cache: it is gone before that of the next batch is made.
            together = [prompts[index] for index in batch]
            read = partial(_read_batch, model, together, trunk, new_tokens, batch_tokens, piece)
            yield _decode(model, read, batch, new_tokens, stop)


def batches(prompts: Sequence[Sequence[int]], rows: int) -> Iterator[list[int]]:
    """Numbers of prompts of one length, `rows` of them at most, in the order of their tokens.

    So neighbours begin alike as far as any two do.
    """
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), tuple(prompts[index])))
    for _, group in groupby(order, key=lambda index: len(prompts[index])):
        numbers = list(group)
        yield from (numbers[start : start + rows] for start in range(0, len(numbers), rows))


def shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that both begin with."""
    size = min(len(left), len(right))
    different = np.asarray(left[:size]) != np.asarray(right[:size])
    return int(different.argmax()) if different.any() else size


def cache_bytes(config: "PretrainedConfig", value_bytes: int) -> int:
    """Bytes of keys and values per token, over all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim_of(config) * value_bytes


def _fitting(model: "PreTrainedModel", tokens: int) -> int:
    """Rows of as many tokens whose keys and values have room in the memory that may be filled with them."""
    return free_bytes(model.device) // (cache_bytes(model.config, model.dtype.itemsize) * tokens)


class _Trunk:
    """What the prompts of the moment begin with, read once."""

    def __init__(self, model: "PreTrainedModel", capacity: int) -> None:
        self._model = model
        self._capacity = capacity
        self.tokens: list[int] = []
        self.cache: RoomyCache | None = None

    def reach(self, tokens: Sequence[int], batch_tokens: int) -> None:
        """Makes it hold exactly these tokens."""
        from eval.answers.kv_cache import RoomyCache

        if self.cache is None:
            self.cache = RoomyCache.of(self._model, 1, self._capacity)
        known = shared(self.tokens, tokens)
        self.cache.show(known)
        _read(self._model, self.cache, [tokens[known:]], batch_tokens)
        self.tokens = list(tokens)

    def begin(self, rows: "RoomyCache", tokens: int) -> None:
        """Gives every one of `rows` the first `tokens` tokens of what it holds."""
        assert self.cache is not None and tokens <= len(self.tokens)
        rows.start_from(self.cache, tokens)


def _read_batch(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    trunk: _Trunk | None,
    new_tokens: int,
    batch_tokens: int,
    piece: int | None,
) -> tuple["RoomyCache", "torch.Tensor"]:
    """Reads prompts of equal length, as many at a time as `batch_tokens` allow: their cache, their last states.

    A prompt begins with what the trunk holds of it, and the trunk grows by what the next prompt begins with alike.
    piece: tokens read in one forward pass; None where prompts are read whole.
    """
    import torch

    from eval.answers.kv_cache import RoomyCache

    length, states = len(prompts[0]), []
    cache = RoomyCache.of(model, len(prompts), length + new_tokens)
    step = max(1, batch_tokens // length)
    for first in range(0, len(prompts), step):
        part = prompts[first : first + step]
        rows = cache.rows(slice(first, first + len(part)))
        if trunk is None:
            if piece is None:
                forget_lengths(model)
            states.append(_read(model, rows, part, piece or length * len(part)))
            continue
        ahead = prompts[min(first + step, len(prompts) - 1)]
        start = min(shared(part[0], ahead), length - 1)
        known = min(shared(trunk.tokens, part[0]), shared(trunk.tokens, part[-1]), length - 1)
        if start > known:
            trunk.reach(part[0][:start], batch_tokens)
        start = max(start, known)
        if start:
            trunk.begin(rows, start)
        states.append(_read(model, rows, [prompt[start:] for prompt in part], batch_tokens))
    cache.show(length)
    return cache, torch.cat(states)


def _read(
    model: "PreTrainedModel", cache: "RoomyCache", rows: Sequence[Sequence[int]], batch_tokens: int
) -> "torch.Tensor":
    """Reads rows of tokens behind what is in the cache, in pieces; the state [rows, hidden] of the last token."""
    import torch

    ids = torch.tensor([list(row) for row in rows], device=model.device)
    for piece in ids.split(max(1, batch_tokens // len(rows)), dim=1):
        states = model.model(input_ids=piece, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    return states


def _decode(
    model: "PreTrainedModel",
    read: Callable[[], tuple["RoomyCache", "torch.Tensor"]],
    batch: list[int],
    new_tokens: int,
    stop: Stop,
) -> list[tuple[int, list[int]]]:
    """One token after the other until every row stops; rows that have are dropped once they are half of all.

    `read` makes the cache of the prompts, and their last states.
    """
    import torch

    cache, states = read()
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
            cache.keep(kept)
            chosen, rows = chosen[kept], [index for index in rows if index in open_rows]
        states = model.model(input_ids=chosen[:, None], past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    return list(answers.items())
