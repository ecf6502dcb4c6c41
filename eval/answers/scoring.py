"""Generated answers, scored one by one: what needles in a haystack and LongBench have in common."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.answers.generation import generate
from eval.answers.journal import Journal, Record
from eval.models import decoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """prompt: token ids. score: of an answer's text, 0 to 1. only_grows: whether more text never lowers the score, so
    that a full score ends the answer. facts: what stands in the sample's record."""

    prompt: tuple[int, ...]
    score: Callable[[str], float]
    only_grows: bool
    facts: Record


def score_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[Question],
    journal: Journal,
    *,
    new_tokens: int,
    batch_tokens: int,
    reuse: bool,
) -> list[Record]:
    """Answers what the journal does not hold yet; the records of all, in order, each with its answer and value."""
    from tqdm import tqdm

    left = [index for index in range(len(questions)) if index not in journal.records]
    if len(left) < len(questions):
        log.info("%d of %d answers are there already", len(questions) - len(left), len(questions))
    ends, end = end_tokens(model, tokenizer), str(tokenizer.eos_token or "")

    def text(tokens: list[int]) -> str:
        """Up to the token that ends it, or up to that token's text in other tokens, which lm-eval takes for an end."""
        body = decoded(tokenizer, tokens[:-1] if tokens[-1] in ends else tokens, skip_special_tokens=True)
        return body.split(end)[0] if end else body

    def stop(place: int, tokens: list[int]) -> bool:
        question, shown = questions[left[place]], decoded(tokenizer, tokens)
        is_at_an_end = tokens[-1] in ends or (end != "" and end in shown)
        return is_at_an_end or (question.only_grows and question.score(shown) == 1)

    answers = generate(
        model,
        [questions[index].prompt for index in left],
        new_tokens=new_tokens,
        batch_tokens=batch_tokens,
        stop=stop,
        reuse=reuse,
    )
    with tqdm(total=len(questions), initial=len(journal.records), unit="answer", leave=False, disable=None) as bar:
        for batch in answers:
            records = []
            for place, tokens in batch:
                question, answer = questions[left[place]], text(tokens)
                records.append({"index": left[place], **question.facts, "got": answer, "value": question.score(answer)})
            journal.add(records)
            bar.update(len(records))
    return [journal.records[index] for index in range(len(questions))]


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Token ids that end an answer: the tokenizer's and those of the model's generation settings."""
    given = model.generation_config.eos_token_id if model.generation_config else None
    listed = given if isinstance(given, list) else [given]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}
