"""lm-eval's own tasks: their prompts, metrics and where their data lie."""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.config import LmTask
from eval.errors import EvaluationError
from eval.hub import offline

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

_FOLDERS: dict[LmTask, str] = {
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "hellaswag": "hellaswag",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "winogrande": "winogrande",
}


@functools.cache
def manager(name: str) -> "TaskManager":
    """lm-eval's task manager for the one folder that holds `name`; to look through all folders takes many seconds."""
    from lm_eval.tasks import TaskManager

    folder = "longbench" if name.startswith("longbench_") else _FOLDERS[name]
    place = Path(find_spec("lm_eval").submodule_search_locations[0]) / "tasks" / folder
    return TaskManager(include_path=str(place), include_defaults=False)


def load_task(name: str, field: str, items: Callable[..., Any] | None = None) -> "Task":
    """lm-eval's task with its data: `items` (a function that returns splits) or what the Hub's cache holds.

    Raises: EvaluationError where the cache has not the data. `field` of the recipe asks for them.
    """
    spec = {"task": name} | ({} if items is None else {"custom_dataset": items})
    try:
        with offline():
            return manager(name).load_task_or_group([spec])[name]
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # what `datasets` raises offline varies
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise EvaluationError(
            f"{field}: the data of {name} are not in this machine's Hub cache ({reason}); name a local file, or where "
            f"there is a network run it once: lm_eval --model dummy --tasks {name} --limit 1"
        ) from None


def documents(task: "Task") -> list[dict[str, Any]]:
    """The items that the task scores, in order."""
    return list(task.test_docs() if task.has_test_docs() else task.validation_docs())
