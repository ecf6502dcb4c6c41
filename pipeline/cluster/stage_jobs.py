"""The jobs that a run's stages become: which there are, and which must have ended before which."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.cluster.profiles import StageProfile
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe
from pipeline.runs.stage import ArrayStage, Stage
from pipeline.stages.order import stages_of

MERGE = "-merge"

Does = Literal["all", "tasks", "merge"]
"""The whole stage, its tasks, or putting together what the tasks made."""


@dataclass(frozen=True)
class StageJob:
    """One job, or array of jobs, that does a stage or a part of it."""

    stage: Stage
    does: Does
    needs: tuple[str, ...]
    """Names of the stage jobs that must have ended well before this one begins."""
    tasks: int = 1

    @property
    def name(self) -> str:
        return f"{self.stage.name}{MERGE}" if self.does == "merge" else self.stage.name

    @property
    def is_array(self) -> bool:
        return self.does == "tasks"

    def undone_tasks(self, recipe: Recipe) -> list[int]:
        """Of an array the numbers of the tasks that have something left to do.

        Raises: RecipeError or a package's own error.
        """
        return self.stage.undone_tasks(recipe, self.tasks) if isinstance(self.stage, ArrayStage) else []

    @property
    def spans_nodes(self) -> bool:
        """Whether it starts processes on all of its nodes, as trainings do; others work on one node."""
        return self.stage.spans_nodes

    @property
    def resources_of(self) -> str:
        """The stage whose resources of a cluster it asks for."""
        if self.does == "merge" and isinstance(self.stage, ArrayStage) and self.stage.merge_resources:
            return self.stage.merge_resources
        return self.stage.name


def stage_jobs_of(recipe: Recipe, profile: StageProfile, stages: Sequence[Stage]) -> list[StageJob]:
    """The jobs of these stages, in order. A need for a stage that is not among them is left out."""
    last: dict[str, str] = {}
    jobs: list[StageJob] = []
    for stage in stages:
        needs = tuple(last[name] for name in stage.needs(recipe) if name in last)
        most = stage.most_tasks(recipe) if isinstance(stage, ArrayStage) else 1
        tasks = min(profile.resources(stage.name).tasks or 1, most)
        if tasks > 1:
            jobs.append(StageJob(stage, "tasks", needs, tasks))
            jobs.append(StageJob(stage, "merge", (stage.name,)))
        else:
            jobs.append(StageJob(stage, "all", needs))
        last[stage.name] = jobs[-1].name
    return jobs


def stages_between(recipe: Recipe, first: str | None, last: str | None) -> list[Stage]:
    """The recipe's stages from `first` to `last`; None: from the beginning, to the end.

    Raises: RecipeError for a stage that the recipe has not, or an order in which nothing is left.
    """
    stages = stages_of(recipe)
    names = [stage.name for stage in stages]
    for option, name in (("--from", first), ("--until", last)):
        if name is not None and name not in names:
            raise RecipeError(f"{option} {name}: this recipe has {', '.join(names)}")
    begin = names.index(first) if first else 0
    end = names.index(last) if last else len(names) - 1
    if begin > end:
        raise RecipeError(f"--from {first} --until {last}: {first} comes after {last}")
    return stages[begin : end + 1]
