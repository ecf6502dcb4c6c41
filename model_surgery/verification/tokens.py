"""The tokens that a layout is verified on."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from model_surgery.shape import ModelShape

log = logging.getLogger(__name__)

PASSAGE = Path(__file__).with_name("passage.txt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def verification_tokens(source: Path, shape: ModelShape, length: int, seed: int = 0) -> tuple[Tensor, int]:
    """Two sequences [2, length] of at most the model's context, and how many of their tokens are text.

    The first is a passage of English and code, where the source has a tokenizer; the second is drawn at random, so that
    a tokenizer that knows few words does not leave the comparison with a row of one and the same token.
    """
    length = min(length, shape.context)
    tokens = torch.randint(shape.vocab, (2, length), generator=torch.Generator().manual_seed(seed))
    text = passage_tokens(source, shape, length)
    if text is None:
        return tokens, 0
    tokens[0] = text
    return tokens, length


def passage_tokens(source: Path, shape: ModelShape, length: int) -> Tensor | None:
    """The passage in the source's tokens, over and over up to `length`; None where it has no tokenizer that fits."""
    if not any((source / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        ids = tokenizer(PASSAGE.read_text(encoding="utf-8"), add_special_tokens=True)["input_ids"]
    except Exception as error:  # AutoTokenizer ends in many kinds of error, among them plain Exception from Rust
        log.warning(
            "%s: its tokenizer does not load (%s); verified on random tokens", source, str(error).split("\n")[0]
        )
        return None
    if not ids or max(ids) >= shape.vocab:
        log.warning("%s: its tokenizer gives ids that the model has not; verified on random tokens", source)
        return None
    return torch.tensor(ids).repeat(-(-length // len(ids)))[:length]
