"""Whether two runs were scored on the same samples of a task."""

from pathlib import Path
from typing import Any

from eval.config import EvaluationConfig
from eval.tasks.niah.tasks import TASKS
from eval.units import Family, Unit, rows_of, task_settings
from pipeline.report.runs import Run


def same_samples(one: Run, other: Run, task: str) -> bool:
    """Tokenizer, training length, seed, the task's settings and the files that its samples come from are the same."""
    return samples_of(one, task) == samples_of(other, task)


def samples_of(run: Run, task: str) -> dict[str, Any]:
    """All that the samples of a task depend on."""
    config = run.results.config
    family = next(family for family, name, _ in rows_of(config) if name == task)
    settings = task_settings(Unit(family, task, "drope", 1), config)
    inputs = run.data.manifests["evaluation"].inputs
    return {
        "tokenizer": run.results.tokenizer_digest,
        "training_length": run.results.training_length,
        "seed": config.seed,
        "settings": {name: value for name, value in settings.items() if name not in words_from_files(config, family)},
        "files": {name: inputs.get(name) for name in files_of(config, family, task)},
    }


def files_of(config: EvaluationConfig, family: Family, task: str) -> list[str]:
    """The evaluation stage's inputs (names in its manifest) that samples are made from."""
    if family == "loss":
        return ["data"]
    if family == "recall":
        text = ["data"] if config.recall and config.recall.haystack == "text" else []
        return [*text, *(f"recall {name}" for name in words_from_files(config, family))]
    if family == "niah":
        return ["essays"] if TASKS[task].haystack == "essays" else []
    return [f"task {task}"]


def words_from_files(config: EvaluationConfig, family: Family) -> list[str]:
    """Settings that name a file, whose fingerprint counts and not its path."""
    recall = config.recall if family == "recall" else None
    return [name for name in ("keys", "values") if recall and isinstance(getattr(recall, name), Path)]
