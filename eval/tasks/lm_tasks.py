"""lm-eval's own tasks: their prompts, metrics and where their data lie."""

import functools
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.errors import EvaluationError
from eval.tasks.hub import offline

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

_FOLDERS: dict[str, str] = {
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

    return TaskManager(include_path=str(_folder(name)), include_defaults=False)


def _folder(name: str) -> Path:
    """lm-eval's folder of a task, found without importing lm-eval."""
    package = find_spec("lm_eval")
    if package is None or package.origin is None:
        raise EvaluationError(f"{name}: lm-eval is not installed; pip install lm-eval")
    return Path(package.origin).parent / "tasks" / _FOLDERS.get(name, "longbench")


def load_task(name: str, field: str) -> "Task":
    """lm-eval's own task with its data from the Hub's cache.

    Raises: EvaluationError where the cache has not the data. `field` of the recipe asks for them.
    """
    try:
        with offline(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a metric would be faster with a compiled library
            return manager(name).load_task_or_group(name)[name]
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # what `datasets` raises offline varies
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise EvaluationError(
            f"{field}: the data of {name} are not in this machine's Hub cache ({reason}); name a local file, or where "
            f"there is a network run it once: lm_eval --model dummy --tasks {name} --limit 1"
        ) from None


def dataset_of(name: str) -> tuple[str, str | None]:
    """The Hub data set that lm-eval's own task reads, and its configuration."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(manager(name).task_index[name].yaml_path, resolve_func=False)
    return config["dataset_path"], config.get("dataset_name")


def task_over(name: str, items: list[dict[str, Any]]) -> "Task":
    """lm-eval's own task of LongBench, with its prompt and metric, over these items."""
    from datasets import Dataset
    from lm_eval.tasks._yaml_loader import load_yaml

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        config = load_yaml(_folder(name) / f"{name.removeprefix('longbench_')}.yaml", resolve_func=True)
    config |= {"dataset_path": None, "dataset_name": None}
    config["custom_dataset"] = lambda **_: {"test": Dataset.from_list(items)}
    return manager(name).load_task_or_group([{key: value for key, value in config.items() if key != "tag"}])[name]


def documents(task: "Task") -> list[dict[str, Any]]:
    """The items that the task scores, in order."""
    return list(task.test_docs() if task.has_test_docs() else task.validation_docs())
