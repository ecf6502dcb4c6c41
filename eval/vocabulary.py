"""Whether a tokenizer is the model's own: the same tokens under the same ids."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import EvaluationError
from eval.models import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which a folder with a tokenizer has at least one."""


def require_vocabulary_of(source: Path, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Raises: EvaluationError if `tokenizer`, which was read from `folder`, numbers tokens otherwise than the source's.

    Ids alone are compared, since transformers may build tokenizers of different classes from the two folders, which
    cut texts differently. A source without a tokenizer, or with one that cannot be read here, has nothing to compare.
    """
    if folder == source or not any((source / name).is_file() for name in _VOCABULARY_FILES):
        return
    try:
        own = load_tokenizer(source)
    except EvaluationError as error:
        log.warning("the source's tokenizer is not compared with the one that is used: %s", error)
        return
    if difference := first_difference(own.get_vocab(), tokenizer.get_vocab()):
        raise EvaluationError(
            f"{folder}: another tokenizer than that of {source}: {difference}; give the tokenizer that the model was "
            "trained with"
        )


def first_difference(own: dict[str, int], other: dict[str, int]) -> str:
    """The first token, by the id in `own`, that `other` has under another id, or under whose id it has another token.

    Empty where there is none: tokens that only one of both has, under ids that the other leaves free, do no harm.
    """
    renamed = {number: token for token, number in other.items() if token not in own}
    for token, number in sorted(own.items(), key=lambda item: item[1]):
        if other.get(token, number) != number:
            return f"token {token!r} is {number} there and {other[token]} here"
        if token not in other and number in renamed:
            return f"id {number} is {token!r} there and {renamed[number]!r} here"
    return ""
