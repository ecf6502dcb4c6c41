"""What candidates (rescale factors, softmax scales) are judged by: text or samples that no score is taken on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from eval.config import EvaluationConfig, RecallConfig
from eval.inputs import Inputs
from eval.tasks.forward import token_losses
from eval.tasks.loss import cut_rows
from eval.tasks.recall_samples import recall_samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

JudgedBy = Literal["needles", "text"]


@dataclass(frozen=True)
class Judge:
    """Rows of one length, and which of their tokens count.

    rows: [n, m + 1] token ids, of which the last m are predicted. asked: [n, m], those that count.
    """

    kind: JudgedBy
    rows: np.ndarray
    asked: np.ndarray
    batch_tokens: int

    @property
    def counts(self) -> np.ndarray:
        """Counted tokens of each row, [n]."""
        return self.asked.sum(axis=1)

    def by_row(self, model: "PreTrainedModel") -> np.ndarray:
        """Mean loss of the counted tokens of each row, nats: [n]."""
        losses = token_losses(model, self.rows, self.batch_tokens)
        return (losses * self.asked).sum(axis=1) / self.counts

    def loss(self, model: "PreTrainedModel") -> float:
        """Mean loss of all counted tokens, nats."""
        return float(np.average(self.by_row(model), weights=self.counts))


def needles(recall: RecallConfig, config: EvaluationConfig, inputs: Inputs, length: int, samples: int) -> Judge:
    """The answers of `samples` recall samples of `length` tokens, drawn with another seed than the scored ones.

    Such answers are what LongRoPE2 (arXiv:2502.20082) judges by.
    """
    asked = recall.model_copy(update={"samples": samples})
    drawn = recall_samples(asked, inputs.encode, inputs.tokens, length, config.seed + 1, inputs.prefix)
    answers = np.arange(drawn.tokens.shape[1] - 1)[None, :] >= drawn.answer_starts[:, None] - 1
    return Judge("needles", drawn.tokens, answers, config.batch_tokens)


def text(tokens: np.ndarray, length: int, rows: int, batch_tokens: int) -> Judge:
    """Every token of `rows` rows of `length` tokens, cut from the start of `tokens`."""
    return Judge("text", cut_rows(tokens, length, rows), np.ones((rows, length), dtype=bool), batch_tokens)
