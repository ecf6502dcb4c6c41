"""LongBench with lm-eval's prompts and metrics; answers are generated, long prompts lose their middle."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from eval.answers.scoring import Question
from eval.config import LongBenchConfig, LongBenchTask
from eval.errors import EvaluationError
from eval.tasks.lm_tasks import documents, load_task
from foundation.install import install_hint

if TYPE_CHECKING:
    from lm_eval.api.task import Task

METRICS: dict[str, str] = {
    "multifieldqa_en": "qa_f1",
    "musique": "qa_f1",
    "gov_report": "rouge_l",
    "lcc": "code_sim",
}
_METRIC_PACKAGES = ("jieba", "fuzzywuzzy", "rouge")
Encode = Callable[[str], Sequence[int]]
_TEXTS = ("context", "question")


def load_items(name: LongBenchTask, config: LongBenchConfig) -> list[dict[str, Any]]:
    """The items of a task: context, question, answers.

    Raises: EvaluationError with file and line where the data are missing, empty or of another form.
    """
    for package in _METRIC_PACKAGES:
        if find_spec(package) is None:
            raise EvaluationError(f"longbench: its metrics need {package}; install it with {install_hint('longbench')}")
    if config.folder is None:
        return documents(load_task(f"longbench_{name}", "longbench.folder"))[: config.limit]
    path = config.folder / f"{name}.jsonl"
    if not path.is_file():
        raise EvaluationError(f"longbench.folder: {path} does not exist; put LongBench's {name}.jsonl there")
    with path.open("rb") as lines:
        items = [_item(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not items:
        raise EvaluationError(f"longbench.folder: {path} has no items")
    return items[: config.limit]


def _item(line: bytes, where: str) -> dict[str, Any]:
    """An item under the names that lm-eval's prompts use; LongBench's own files call the question `input`."""
    try:
        item = json.loads(line)
    except ValueError as error:
        raise EvaluationError(f"{where}: not JSON: {error}") from None
    if isinstance(item, dict):
        item = {"question": item.get("input"), **item}
        answers = item.get("answers")
        right = isinstance(answers, list) and answers and all(isinstance(answer, str) for answer in answers)
        if right and all(isinstance(item.get(name), str) for name in _TEXTS):
            return {name: item[name] for name in (*_TEXTS, "answers")}
    raise EvaluationError(f"{where}: needs context, input (or question) and answers, as LongBench's own files have")


def new_tokens(task: "Task") -> int:
    """Tokens that an answer may have."""
    return int(task.config.generation_kwargs["max_gen_toks"])


def questions(task: "Task", items: Sequence[dict[str, Any]], encode: Encode, length: int) -> list[Question]:
    """The prompts, cut to leave room for the answer in `length` tokens, and their scoring.

    encode: text to token ids with the special tokens of a prompt.
    """
    most = length - new_tokens(task)
    asked = []
    for item in items:
        whole = encode(task.doc_to_text(item))
        prompt = _fit(whole, most)
        asked.append(
            Question(
                prompt=tuple(prompt),
                score=partial(_score, task, item),
                only_grows=False,
                facts={"prompt_tokens": len(prompt), "cut": len(whole) > most, "expected": item["answers"]},
            )
        )
    return asked


def _score(task: "Task", item: dict[str, Any], answer: str) -> float:
    return float(task.process_results(item, [answer])["score"])


def _fit(tokens: Sequence[int], most: int) -> Sequence[int]:
    """The prompt's tokens; of one that is too long the first and last half, as LongBench's own code has it.

    That code joins the halves as texts; where a special token leads, the first half keeps it.
    """
    if len(tokens) <= most:
        return tokens
    return [*tokens[: most - most // 2], *tokens[len(tokens) - most // 2 :]]
