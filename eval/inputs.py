"""Every refusal of an evaluation, before any work: what comes out is all that the units read."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.config import EvaluationConfig, RecallConfig
from eval.device import pick_device
from eval.digests import digest_files, digest_text
from eval.errors import EvaluationError
from eval.held_out import read_held_out
from eval.models import (
    Models,
    decoded,
    head_dim_of,
    load_tokenizer,
    model_digest,
    read_config,
    require_no_rope,
    require_rope,
    role_of,
    tokenizer_digest,
)
from eval.tasks.data import check_needles, data_digests, read_task_data
from eval.tasks.loss import rows_at
from eval.tasks.recall_samples import load_words, recall_samples
from eval.variants.longrope2 import read_factors
from eval.vocabulary import require_vocabulary_of

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The inputs of the units, read and checked.

    config: what is asked for and can be scored here. left_out: tasks that cannot, with what each lacks. context:
    training length C in tokens. tokens: [n] held-out tokens. unscored: those after them, which nothing is scored on.
    rows: rows of the loss at each context factor. rescale: LongRoPE2's factors by context factor, where they are given.
    prefix: token ids that a prompt begins with. items: of each task of LongBench or the harness. essays: sentences of
    the needle tasks' haystack. digests: of each input, by role.
    """

    config: EvaluationConfig
    left_out: dict[str, str]
    context: int
    tokenizer: "PreTrainedTokenizerBase"
    device: "torch.device"
    tokens: np.ndarray
    unscored: np.ndarray
    rescale: dict[int, tuple[float, ...]]
    rows: dict[int, int]
    prefix: tuple[int, ...]
    items: dict[str, list[dict[str, Any]]]
    essays: tuple[str, ...]
    digests: dict[str, str]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, with what the tokenizer begins it with."""
        return [*self.prefix, *self.encode(text)]


def check(config: EvaluationConfig, models: Models) -> None:
    """Raises: EvaluationError for anything that would stop `run` later. Writes nothing."""
    read_inputs(config, models)


def read_inputs(config: EvaluationConfig, models: Models) -> Inputs:
    """Read the inputs and refuse what cannot be evaluated.

    Raises: EvaluationError.
    """
    device = pick_device(config.device)
    data = read_task_data(config)
    config = config.without(data.missing)
    if config.recall is not None:
        load_words(config.recall)
    folders, configs = _read_models(config, models)
    context = configs["source"].max_position_embeddings
    tokenizer = load_tokenizer(models.tokenizer)
    for role, shape in configs.items():
        if len(tokenizer) > shape.vocab_size:
            raise EvaluationError(
                f"{models.tokenizer}: {len(tokenizer)} tokens, but {folders[role]} has a vocabulary of "
                f"{shape.vocab_size}; give the tokenizer that the model was trained with"
            )
    require_vocabulary_of(models.source, tokenizer, models.tokenizer)
    smallest = min(one.vocab_size for one in configs.values())
    tokens, unscored = read_held_out(config, models.validation, context, smallest)
    rescaled = "longrope2" in config.variants
    pairs = head_dim_of(configs["source"]) // 2
    inputs = Inputs(
        config=config,
        left_out=data.missing,
        context=context,
        tokenizer=tokenizer,
        device=device,
        tokens=tokens,
        unscored=unscored,
        rescale=read_factors(config.longrope2, config.context_factors, pairs) if rescaled else {},
        rows={factor: rows_at(len(tokens), config.loss.tokens, factor * context) for factor in config.context_factors},
        prefix=tuple(token for token in tokenizer.encode("") if token == tokenizer.bos_token_id),
        items=data.items,
        essays=data.essays,
        digests=_digests(config, models, folders) | data_digests(data),
    )
    if config.recall is not None:
        _check_recall(config.recall, config, inputs)
    check_needles(config, data.essays, tokenizer, context)
    return inputs


def _read_models(config: EvaluationConfig, models: Models) -> tuple[dict[str, Path], dict[str, "PretrainedConfig"]]:
    """Folder and HF config of each model that the variants need, by its role; the source, which says C, always."""
    folders = {"source": models.source}
    for variant in config.variants:
        folders[role_of(variant)] = models.folder(variant)
    configs = {role: read_config(folder) for role, folder in folders.items()}
    scored = {role_of(variant) for variant in config.variants}
    for role, shape in configs.items():
        if role == "drope":
            require_no_rope(folders[role], shape)
        elif role in scored:  # a source that only says C may be a model without RoPE
            require_rope(folders[role], shape)
    return folders, configs


def _check_recall(recall: RecallConfig, config: EvaluationConfig, inputs: Inputs) -> None:
    """Refuse words that the tokenizer does not know, and needles that do not fit the shortest length."""
    keys, values = load_words(recall)
    facts = [("keys", key, recall.fact.format(key=key, value=values[0])) for key in keys]
    facts += [("values", value, recall.fact.format(key=keys[0], value=value)) for value in values]
    for field, word, fact in facts:
        if not _keeps(inputs, fact, word):
            raise EvaluationError(
                f"recall.{field}: the tokenizer does not know all of {word!r} in the fact {fact!r}; use words and "
                "a template of its vocabulary"
            )
    shortest = config.context_factors[0] * inputs.context
    recall_samples(recall, inputs.encode, inputs.tokens, shortest, config.seed, inputs.prefix)


def _keeps(inputs: Inputs, fact: str, word: str) -> bool:
    """Whether `word` survives tokenization: no unknown token, and nothing dropped (as byte-level gaps do silently)."""
    tokens = inputs.encode(fact)
    unknown = inputs.tokenizer.unk_token_id
    if unknown is not None and unknown in tokens:
        return False
    text = decoded(inputs.tokenizer, tokens)
    return "".join(word.split()).casefold() in "".join(text.split()).casefold()


def _digests(config: EvaluationConfig, models: Models, folders: dict[str, Path]) -> dict[str, str]:
    """Digest of models, tokenizer, validation and recall words, by role."""
    digests = {role: model_digest(folder) for role, folder in folders.items()}
    digests["tokenizer"] = tokenizer_digest(models.tokenizer)
    shards = [digest_files([Path(f"{prefix}.bin"), Path(f"{prefix}.idx")]) for prefix in models.validation]
    digests["validation"] = digest_text(" ".join(shards))
    if config.recall is not None:
        digests["words"] = digest_text(repr(load_words(config.recall)))
    return digests
