"""Recall: on how many samples the greedy continuation is exactly the value that was asked for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eval.models import decoded
from eval.statistics import mean_and_error
from eval.tasks.forward import greedy_tokens
from eval.tasks.recall_samples import RecallSamples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class RecallScore:
    """Fraction of exact answers with its standard error, and what was given for each sample: [n] lists of token ids."""

    value: float
    stderr: float | None
    right: np.ndarray
    given: tuple[tuple[int, ...], ...]


def score_recall(
    model: "PreTrainedModel", samples: RecallSamples, batch_tokens: int, window: int | None = None
) -> RecallScore:
    """Exact match of the greedy continuation with the answer.

    One forward pass over sample and answer is enough: the first choice at every answer position, given the true tokens
    before it, equals the answer exactly where greedy decoding does. Past a first error the `given` tokens are therefore
    those that follow the true answer's start, not the model's own. `window`: the last tokens that the model is shown.
    """
    last = int(samples.tokens.shape[1] - samples.answer_starts.min())
    shown = samples.tokens[:, -window:] if window else samples.tokens
    choices = greedy_tokens(model, shown, last, batch_tokens)
    return grade(samples, choices)


def grade(samples: RecallSamples, choices: np.ndarray) -> RecallScore:
    """Compare `choices` [n, last], the tokens chosen at the final positions, with the samples' answers."""
    length, last = samples.tokens.shape[1], choices.shape[1]
    asked = np.arange(length - last, length)[None, :] >= samples.answer_starts[:, None]
    right = ((choices == samples.tokens[:, length - last :]) | ~asked).all(axis=1)
    given = tuple(tuple(row[mask].tolist()) for row, mask in zip(choices, asked, strict=True))
    value, stderr = mean_and_error(right.astype(float))
    return RecallScore(value, stderr, right, given)


def sample_records(
    samples: RecallSamples, score: RecallScore, tokenizer: "PreTrainedTokenizerBase"
) -> list[dict[str, object]]:
    """One record per sample: the key asked, the value stated, its depth, expected and given text."""
    records = []
    for index, start in enumerate(samples.answer_starts):
        expected = samples.tokens[index, start:].tolist()
        records.append(
            {
                "sample": index,
                "key": samples.keys[index],
                "value": samples.values[index],
                "depth": round(samples.depths[index], 4),
                "expected": decoded(tokenizer, expected),
                "got": decoded(tokenizer, score.given[index]),
                "right": bool(score.right[index]),
            }
        )
    return records
