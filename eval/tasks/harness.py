"""Multiple-choice tasks through lm-eval's own harness and its HF adapter: local files or its own tasks, offline."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.config import HarnessTask
from eval.errors import EvaluationError
from eval.tasks.hub import offline
from eval.tasks.lm_tasks import documents, load_task, manager

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAX_BATCH = 64
_NOTES = ("`pretrained` model kwarg", "Passed an already-initialized model", "Custom kwargs can be passed")
_QUERY_FIELDS = {"query": str, "choices": list, "gold": int}
_CONTEXT_FIELDS = {"context_options": list, "continuation": str, "gold": int}


@dataclass(frozen=True)
class HarnessScore:
    """One metric of one task, as lm-eval gives it."""

    metric: str
    value: float
    stderr: float | None
    samples: int
    values: tuple[float, ...]
    """Of every item, in the file's order."""


def read_items(task: HarnessTask) -> list[dict[str, Any]]:
    """The first `task.limit` items of the task's file, all of one form, or of lm-eval's own task in the Hub's cache.

    Raises: EvaluationError with file and line where the file is missing, empty, or an item is of neither form; where
    the cache has not the data.
    """
    if task.path is None:
        return documents(load_task(task.name, f"harness.{task.name}"))[: task.limit]
    if not task.path.is_file():
        raise EvaluationError(f"harness.{task.name}: {task.path} does not exist; give a local .jsonl file")
    items: list[dict[str, Any]] = []
    with task.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if task.limit is not None and len(items) >= task.limit:
                break
            if line.strip():
                fields = None if not items else set(items[0])
                items.append(_item(line, f"{task.path}:{number}", fields))
    if not items:
        raise EvaluationError(f"harness.{task.name}: {task.path} has no items")
    if task.num_fewshot >= len(items):
        raise EvaluationError(
            f"harness.{task.name}: num_fewshot = {task.num_fewshot} with {len(items)} items; take fewer"
        )
    return items


def _item(line: bytes, where: str, expected: set[str] | None) -> dict[str, Any]:
    """One item from a JSON line, reduced to the fields of its form."""
    try:
        item = json.loads(line)
    except ValueError as error:  # not JSON, or not UTF-8
        raise EvaluationError(f"{where}: not JSON: {error}") from None
    for form in (_QUERY_FIELDS, _CONTEXT_FIELDS):
        if isinstance(item, dict) and all(isinstance(item.get(name), kind) for name, kind in form.items()):
            options = item["choices"] if form is _QUERY_FIELDS else item["context_options"]
            if len(options) < 2 or not all(isinstance(option, str) and option for option in options):
                raise EvaluationError(f"{where}: needs at least two choices, each a text that is not empty")
            if not 0 <= item["gold"] < len(options):
                raise EvaluationError(f"{where}: gold = {item['gold']} with {len(options)} choices")
            if expected is not None and set(form) != expected:
                raise EvaluationError(f"{where}: another form than the lines before; one file holds one form")
            return {name: item[name] for name in form}
    raise EvaluationError(f"{where}: unknown format; needs query, choices, gold or context_options, continuation, gold")


def task_config(task: HarnessTask, items: list[dict[str, Any]]) -> dict[str, Any]:
    """lm-eval's task configuration, built in memory.

    `custom_dataset` hands the items over directly: nothing is looked up on the Hub or left in a cache. The fields are
    functions since lm-eval's templates would turn a query of digits into a number. Where the contexts differ and the
    continuation is the same (WinoGrande), doc_to_text gives the gold index and acc is the only metric, as in lm-eval's
    own task: a length norm over one and the same continuation would mean nothing. See docs/task_guide.md of lm-eval.
    """
    from datasets import Dataset

    if "query" in items[0]:
        fields: dict[str, Callable[[dict[str, Any]], Any]] = {
            "doc_to_text": lambda item: item["query"] + task.suffix,
            "doc_to_choice": lambda item: item["choices"],
            "doc_to_target": lambda item: item["gold"],
        }
        metrics: tuple[str, ...] = ("acc", "acc_norm")
    else:
        fields = {
            "doc_to_text": lambda item: item["gold"],
            "doc_to_choice": lambda item: item["context_options"],
            "doc_to_target": lambda item: item["continuation"],
        }
        metrics = ("acc",)
    return {
        "task": task.name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(items)},
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": task.num_fewshot,
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
        **fields,
    }


def score_harness(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    task: HarnessTask,
    items: list[dict[str, Any]],
    *,
    context: int,
    batch_tokens: int,
    seed: int,
) -> list[HarnessScore]:
    """Score `model` on `items` with lm-eval's `simple_evaluate`; longer prompts keep their last `context` tokens."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = task.path is None
    batch = min(_MAX_BATCH, max(1, batch_tokens // context))
    with _without_notes(), offline():
        adapter = HFLM(pretrained=model, tokenizer=tokenizer, max_length=context, batch_size=batch)
        results = simple_evaluate(
            model=adapter,
            tasks=[task.name if own else task_config(task, items)],
            task_manager=manager(task.name) if own else TaskManager(include_defaults=False),
            num_fewshot=task.num_fewshot,
            limit=task.limit,
            log_samples=True,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    means = results["results"][task.name]
    samples = results["n-samples"][task.name]["effective"]
    metrics = [name for name in ("acc", "acc_norm") if f"{name},none" in means]
    items_scored = sorted(results["samples"][task.name], key=lambda item: item["doc_id"])
    return [
        HarnessScore(
            name,
            float(means[f"{name},none"]),
            _number(means[f"{name}_stderr,none"]),
            samples,
            tuple(float(item[name]) for item in items_scored),
        )
        for name in metrics
    ]


@contextmanager
def _without_notes() -> Iterator[None]:
    """Drop lm-eval's warnings on what is meant here (a loaded model, items in memory); others stay."""

    def is_news(record: logging.LogRecord) -> bool:
        return not any(note in record.getMessage() for note in _NOTES)

    loggers = [logging.getLogger(name) for name in ("lm_eval.models.huggingface", "lm_eval.api.task")]
    for logger in loggers:
        logger.addFilter(is_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_news)


def _number(value: float | str) -> float | None:
    """lm-eval writes "N/A" where it has no standard error (a single item)."""
    return None if isinstance(value, str) else float(value)
