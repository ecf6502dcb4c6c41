"""What variants are compared by: one task, or the mean of several tasks, at every length."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.config import SWEPT_TASKS, EvaluationConfig, Variant
from eval.results import Results, Score

NEEDLES = "needles"
LONGBENCH = "longbench"
LOWER_IS_BETTER = ("loss",)
_MEANS: dict[str, Callable[[EvaluationConfig], tuple[str, ...]]] = {
    NEEDLES: lambda config: ruler_tasks(config),
    LONGBENCH: lambda config: config.longbench.tasks if config.longbench else (),
}
Place = tuple[Variant, int]
"""A variant at a context factor."""


@dataclass(frozen=True)
class Measure:
    """Scores by place, in the order of results.json, and the samples' values behind each: one sequence per task.

    tasks: what the mean is over; one of them is that task itself.
    """

    name: str
    tasks: tuple[str, ...]
    scores: dict[Place, Score]
    parts: dict[Place, tuple[Sequence[float], ...]]

    @property
    def factors(self) -> list[int]:
        """Context factors, rising."""
        return sorted({factor for _, factor in self.scores})

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Variants that have a score."""
        return tuple(dict.fromkeys(variant for variant, _ in self.scores))

    def of(self, variant: Variant) -> list[Score]:
        """The variant's scores, by length."""
        return [self.scores[variant, factor] for factor in self.factors if (variant, factor) in self.scores]


def ruler_tasks(config: EvaluationConfig) -> tuple[str, ...]:
    """The needle tasks that RULER's mean is over: those that sweep the depth are not."""
    return tuple(name for name in config.niah.tasks if name not in SWEPT_TASKS) if config.niah else ()


def measure(results: Results, name: str, metric: str | None = None) -> Measure:
    """A task by its name, NEEDLES or LONGBENCH; without scores where it was not evaluated.

    metric: of a task that has several; its first if not given.
    """
    tasks = _MEANS[name](results.config) if name in _MEANS else (name,)
    of_tasks = [score for score in results.scores if score.task in tasks]
    if metric is None and name not in _MEANS and of_tasks:
        metric = of_tasks[0].metric
    by_place: dict[Place, dict[str, Score]] = {}
    for score in of_tasks:
        if metric in (None, score.metric):
            by_place.setdefault((score.variant, score.context_factor), {})[score.task] = score
    whole = {
        place: [by_task[task] for task in tasks] for place, by_task in by_place.items() if len(by_task) == len(tasks)
    }
    values = {(v.variant, v.context_factor, v.task, v.metric): v.values for v in results.values}
    parts: dict[Place, tuple[Sequence[float], ...]] = {}
    for (variant, factor), scores in whole.items():
        samples = [values.get((variant, factor, score.task, score.metric), ()) for score in scores]
        parts[variant, factor] = tuple(samples) if all(samples) else ()
    return Measure(name, tasks, {place: mean_score(name, scores) for place, scores in whole.items()}, parts)


def mean_score(name: str, scores: Sequence[Score]) -> Score:
    """The mean of tasks, each weighing the same; its standard error takes their samples as independent."""
    if len(scores) == 1 and scores[0].task == name:
        return scores[0]
    errors = [score.stderr for score in scores if score.stderr is not None]
    metrics = sorted({score.metric for score in scores})
    return scores[0].model_copy(
        update={
            "task": name,
            "metric": metrics[0] if len(metrics) == 1 else "mean",
            "value": sum(score.value for score in scores) / len(scores),
            "stderr": math.hypot(*errors) / len(scores) if len(errors) == len(scores) else None,
            "samples": sum(score.samples for score in scores),
            "seconds": sum(score.seconds for score in scores),
        }
    )
