"""The data of all tasks, read from files or the Hub's cache before anything is scored."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from eval.config import EvaluationConfig
from eval.digests import digest_text
from eval.errors import EvaluationError
from eval.tasks.harness import read_items
from eval.tasks.longbench import load_items
from eval.tasks.niah.samples import draw_samples
from eval.tasks.niah.tasks import TASKS
from eval.tasks.niah.words import read_essays

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


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
    readers: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = []
    readers += [(task.name, partial(read_items, task)) for task in config.harness]
    if config.longbench is not None:
        readers += [(name, partial(load_items, name, config.longbench)) for name in config.longbench.tasks]
    for name, read in readers:
        try:
            items[name] = read()
        except EvaluationError as error:
            missing[name] = str(error)
    in_essays = [name for name in config.niah.tasks if TASKS[name].haystack == "essays"] if config.niah else []
    if config.niah is not None and in_essays:
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


def check_needles(
    config: EvaluationConfig, essays: tuple[str, ...], tokenizer: "PreTrainedTokenizerBase", context: int
) -> None:
    """Raises: EvaluationError if a needle task's question does not fit its shortest length."""
    if config.niah is None:
        return
    one, shortest = config.niah.model_copy(update={"samples": 1}), config.niah_factors[0] * context
    for name in config.niah.tasks:
        draw_samples(name, one, essays, tokenizer.encode, shortest, config.seed)


def data_digests(data: TaskData) -> dict[str, str]:
    """Digests of the items of every task, and of the essays."""
    texts = {f"items.{name}": json.dumps(each, sort_keys=True, default=str) for name, each in data.items.items()}
    texts |= {"essays": "\n".join(data.essays)} if data.essays else {}
    return {role: digest_text(text) for role, text in texts.items()}
