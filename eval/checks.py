"""Every refusal of an evaluation, before any work: what comes out is all that the units read."""

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.config import EvaluationConfig, RecallConfig
from eval.errors import EvaluationError
from eval.files import digest_files, digest_text
from eval.models import (
    Models,
    head_dim_of,
    load_tokenizer,
    model_digest,
    pick_device,
    read_config,
    require_no_rope,
    require_rope,
    role_of,
    tokenizer_digest,
)
from eval.tasks.harness import read_items
from eval.tasks.length_sweep import rows_at
from eval.tasks.longbench import load_items
from eval.tasks.niah.samples import draw_samples
from eval.tasks.niah.tasks import TASKS
from eval.tasks.niah.words import read_essays
from eval.tasks.recall_samples import load_words, recall_samples
from eval.tokens import count_tokens, open_prefixes, read_tokens
from eval.variants.longrope2 import read_factors
from eval.vocabulary import require_vocabulary_of

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_HAYSTACK_ROWS = 16
"""Rows of the longest length that a haystack of text is drawn from."""


@dataclass(frozen=True)
class Prepared:
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
    prepare(config, models)


def prepare(config: EvaluationConfig, models: Models) -> Prepared:
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
    for role, found in configs.items():
        if len(tokenizer) > found.vocab_size:
            raise EvaluationError(
                f"{models.tokenizer}: {len(tokenizer)} tokens, but {folders[role]} has a vocabulary of "
                f"{found.vocab_size}; give the tokenizer that the model was trained with"
            )
    require_vocabulary_of(models.source, tokenizer, models.tokenizer)
    tokens, unscored = _read_validation(config, models, context, min(found.vocab_size for found in configs.values()))
    rescaled = "longrope2" in config.variants
    pairs = head_dim_of(configs["source"]) // 2
    prepared = Prepared(
        config=config,
        left_out=data.missing,
        context=context,
        tokenizer=tokenizer,
        device=device,
        tokens=tokens,
        unscored=unscored,
        rescale=read_factors(config.longrope2, config.lengths, pairs) if rescaled else {},
        rows={factor: rows_at(len(tokens), config.loss.tokens, factor * context) for factor in config.lengths},
        prefix=tuple(token for token in tokenizer.encode("") if token == tokenizer.bos_token_id),
        items=data.items,
        essays=data.essays,
        digests=_digests(config, models, folders) | _data_digests(data),
    )
    if config.recall is not None:
        _check_recall(config.recall, config, prepared)
    check_needles(config, data.essays, tokenizer, context)
    return prepared


def check_needles(
    config: EvaluationConfig, essays: tuple[str, ...], tokenizer: "PreTrainedTokenizerBase", context: int
) -> None:
    """Raises: EvaluationError if a needle task's question does not fit its shortest length."""
    for name in config.niah.tasks if config.niah else ():
        one, shortest = config.niah.model_copy(update={"samples": 1}), config.niah_lengths[0] * context
        draw_samples(name, one, essays, tokenizer.encode, shortest, config.seed)


@dataclass(frozen=True)
class TaskData:
    """items: of each task of LongBench and the harness. essays: sentences for needle tasks. missing: task to what it
    lacks."""

    items: dict[str, list[dict[str, Any]]]
    essays: tuple[str, ...]
    missing: dict[str, str]


def read_task_data(config: EvaluationConfig) -> TaskData:
    """The data of all tasks, from files or the Hub's cache.

    Raises: EvaluationError that names every task whose data this machine lacks, unless those may be left out.
    """
    items: dict[str, list[dict[str, Any]]] = {}
    essays: tuple[str, ...] = ()
    missing = {}
    wanted = [(task.name, partial(read_items, task)) for task in config.harness]
    if config.longbench is not None:
        wanted += [(name, partial(load_items, name, config.longbench)) for name in config.longbench.tasks]
    for name, read in wanted:
        try:
            items[name] = read()
        except EvaluationError as error:
            missing[name] = str(error)
    in_essays = [name for name in config.niah.tasks if TASKS[name].haystack == "essays"] if config.niah else []
    if in_essays:
        try:
            essays = read_essays(config.niah.essays)
        except EvaluationError as error:
            missing |= dict.fromkeys(in_essays, str(error))
    if missing and config.missing_data == "refuse":
        raise EvaluationError(f"{'; and '.join(dict.fromkeys(missing.values()))}; or set missing_data: leave_out")
    for name, lack in missing.items():
        log.warning("%s is left out: %s", name, lack)
    return TaskData(items, essays, missing)


def niah_inputs(name: str) -> set[str]:
    """Roles of what the samples of a needle task are made from."""
    return {"tokenizer", "essays"} if TASKS[name].haystack == "essays" else {"tokenizer"}


def _read_models(config: EvaluationConfig, models: Models) -> tuple[dict[str, Path], dict[str, "PretrainedConfig"]]:
    """Folder and HF config of each model that the variants need, by its role; the source, which says C, always."""
    folders = {"source": models.source}
    for variant in config.variants:
        folders[role_of(variant)] = models.folder(variant)
    configs = {role: read_config(folder) for role, folder in folders.items()}
    scored = {role_of(variant) for variant in config.variants}
    for role, found in configs.items():
        if role == "drope":
            require_no_rope(folders[role], found)
        elif role in scored:  # a source that only says C may be a model without RoPE
            require_rope(folders[role], found)
    return folders, configs


def check_held_out(config: EvaluationConfig, context: int, available: int) -> None:
    """Raises: EvaluationError if `available` held-out tokens hold no row of the longest length, or are all scored where
    LongRoPE2's search takes others.
    """
    longest = config.lengths[-1] * context
    if available < longest + 1:
        raise EvaluationError(
            f"validation: {available} tokens, but one row at {config.lengths[-1]}x the context of {context} takes "
            f"{longest + 1}; prepare more validation text, or take {config.lengths[-1]} out of lengths"
        )
    scored, searched = min(scored_tokens(config, longest), available), searched_tokens(config, longest)
    if searched and available < scored + searched:
        raise EvaluationError(
            f"validation: {available} tokens, of which {scored} are scored; the search of longrope2 takes {searched} "
            "others; prepare more validation text, lower loss.tokens, or give longrope2.factors"
        )


def _read_validation(
    config: EvaluationConfig, models: Models, context: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """The held-out tokens that loss and haystack take, and those after them that LongRoPE2's search takes."""
    longest = config.lengths[-1] * context
    datasets = open_prefixes(models.validation)
    available = count_tokens(datasets)
    check_held_out(config, context, available)
    scored = scored_tokens(config, longest)
    tokens = read_tokens(datasets, scored + searched_tokens(config, longest))
    if available <= config.loss.tokens:
        log.warning("validation has %d tokens, loss.tokens asks for %d; all are scored", available, config.loss.tokens)
    if tokens.max() >= vocabulary:
        raise EvaluationError(
            f"validation: token id {tokens.max()}, but the model's vocabulary ends at {vocabulary - 1}; prepare the "
            "text with the model's own tokenizer"
        )
    return tokens[:scored], tokens[scored:]


def scored_tokens(config: EvaluationConfig, longest: int) -> int:
    """Held-out tokens that loss and haystack take where there are as many."""
    text = config.recall is not None and config.recall.haystack == "text"
    return max(config.loss.tokens, (_HAYSTACK_ROWS if text else 1) * longest) + 1


def searched_tokens(config: EvaluationConfig, longest: int) -> int:
    """Held-out tokens beyond the scored ones that LongRoPE2's search takes; none where needle samples judge it."""
    searches = "longrope2" in config.variants and config.longrope2.factors is None and config.lengths[-1] > 1
    return max(config.longrope2.tokens, longest) + 1 if searches and config.recall is None else 0


def _check_recall(recall: RecallConfig, config: EvaluationConfig, prepared: Prepared) -> None:
    """Refuse words that the tokenizer does not know, and needles that do not fit the shortest length."""
    keys, values = load_words(recall)
    facts = [("keys", key, recall.fact.format(key=key, value=values[0])) for key in keys]
    facts += [("values", value, recall.fact.format(key=keys[0], value=value)) for value in values]
    for field, word, fact in facts:
        if not _keeps(prepared, fact, word):
            raise EvaluationError(
                f"recall.{field}: the tokenizer does not know all of {word!r} in the fact {fact!r}; use words and "
                "a template of its vocabulary"
            )
    shortest = config.lengths[0] * prepared.context
    recall_samples(recall, prepared.encode, prepared.tokens, shortest, config.seed, prepared.prefix)


def _keeps(prepared: Prepared, fact: str, word: str) -> bool:
    """Whether `word` survives tokenization: no unknown token, and nothing dropped (as byte-level gaps do silently)."""
    tokens = prepared.encode(fact)
    unknown = prepared.tokenizer.unk_token_id
    if unknown is not None and unknown in tokens:
        return False
    text = prepared.tokenizer.decode(tokens)
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


def _data_digests(data: TaskData) -> dict[str, str]:
    """Digests of the items of every task, and of the essays."""
    texts = {f"items.{name}": json.dumps(each, sort_keys=True, default=str) for name, each in data.items.items()}
    texts |= {"essays": "\n".join(data.essays)} if data.essays else {}
    return {role: digest_text(text) for role, text in texts.items()}
