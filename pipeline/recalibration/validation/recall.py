"""Does the model look back? A sequence of random tokens stands somewhere in a row and again at its end.

Nothing but its first occurrence tells how the second goes on, so a model that gives its tokens a high probability has
found it (an induction head's work: Olsson et al. 2022, arXiv:2209.11895). It needs no tokenizer and no questions.
"""

import math

import torch
from torch import Tensor

from data_prep.rows import RowDataset

SEQUENCE = 16
"""Tokens of the sequence that is repeated."""
_CUE = 4
"""First tokens of the repetition, which nothing announces: they are not scored."""
_EVEN = math.log(2)
"""Loss of a token that has a probability of 1/2, nats."""
SHORTEST_ROW = 2 * SEQUENCE - 1
"""Tokens of the shortest row that the sequence fits into twice; the last label is one token more."""


def recall_rows(rows: RowDataset, *, samples: int, eos_id: int, seed: int) -> Tensor:
    """Held-out rows with a sequence put in twice, int64 [samples, length + 1]: tokens and labels as one.

    The sequence's ids are drawn from those that occur in these rows, each once where there are enough; its first place
    is drawn evenly. Rows are used again if they are fewer than `samples`. Equal arguments give equal rows.
    """
    draw = torch.Generator().manual_seed(seed)
    copies = torch.stack([_whole(rows[index % len(rows)]) for index in range(samples)])
    known = copies.unique()
    known = known[known != eos_id]
    repeats = -(-SEQUENCE // len(known))
    for row in copies:
        order = torch.cat([torch.randperm(len(known), generator=draw) for _ in range(repeats)])
        depth = int(torch.randint(len(row) - 2 * SEQUENCE + 1, (), generator=draw))
        row[depth : depth + SEQUENCE] = row[-SEQUENCE:] = known[order[:SEQUENCE]]
    return copies


def recalled(losses: Tensor) -> Tensor:
    """Share of the repeated tokens that the model gives a probability above 1/2, after the first few.

    `losses`: of every label of these rows, nats, [rows, length]. Result: one share for each row, [rows].
    """
    return (losses[:, _CUE - SEQUENCE :] < _EVEN).double().mean(dim=1)


def _whole(row: dict[str, Tensor]) -> Tensor:
    return torch.cat([row["tokens"], row["labels"][-1:]])
