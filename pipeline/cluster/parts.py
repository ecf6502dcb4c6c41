"""The jobs that a run's stages become: which there are, and which must have ended before which."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.cluster.profiles import StageProfile
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe
from pipeline.runs.stage import ArrayStage, Stage
from pipeline.stages.order import stages_of


@dataclass(frozen=True)
class Part:
    """One job, or array of jobs, of a stage."""

    stage: Stage
    does: Literal["all", "tasks", "merge"]
    """The whole stage, its tasks, or putting together what the tasks made."""
    needs: tuple[str, ...]
    """Names of the parts that must have ended well before this one begins."""
    tasks: int = 1

    @property
    def name(self) -> str:
        return f"{self.stage.name}-merge" if self.does == "merge" else self.stage.name

    @property
    def resources_of(self) -> str:
        """The stage whose resources of a cluster it asks for."""
        if self.does == "merge" and isinstance(self.stage, ArrayStage) and self.stage.merge_resources:
            return self.stage.merge_resources
        return self.stage.name


def parts_of(recipe: Recipe, profile: StageProfile, stages: Sequence[Stage]) -> list[Part]:
    """The parts of these stages, in order. A need for a stage that is not among them is left out."""
    last: dict[str, str] = {}
    parts: list[Part] = []
    for stage in stages:
        needs = tuple(last[name] for name in stage.needs(recipe) if name in last)
        tasks = min(profile.resources(stage.name).tasks or 1, most_tasks(recipe, stage))
        if tasks > 1:
            parts.append(Part(stage, "tasks", needs, tasks))
            parts.append(Part(stage, "merge", (stage.name,)))
        else:
            parts.append(Part(stage, "all", needs))
        last[stage.name] = parts[-1].name
    return parts


def most_tasks(recipe: Recipe, stage: Stage) -> int:
    """How many tasks could have something to do; 1 for what cannot be divided."""
    return stage.most_tasks(recipe) if isinstance(stage, ArrayStage) else 1


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
