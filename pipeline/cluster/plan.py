"""What a recipe would ask a cluster for: nodes, GPUs, time."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.cluster.chain import resources_of
from pipeline.cluster.parts import parts_of
from pipeline.cluster.profiles import StageProfile
from pipeline.recipe.recipe import Recipe
from pipeline.stages.order import stages_of
from pipeline.stages.training import trainings_of
from pipeline.tools.plan import Plan
from slurm.profile import seconds_of


@dataclass(frozen=True)
class PartPlan:
    """What one job, or array of jobs, asks for."""

    part: str
    tasks: int
    at_once: int | None
    nodes: int
    nodes_min: int
    gpus_per_node: int
    cpus_per_node: int | None
    memory: str | None
    partition: str | None
    time: str | None
    hours: float | None
    """Estimated for trainings on GPUs."""
    allocations: int | None
    """How often the job has to be given nodes for that, at this time limit."""

    def as_text(self) -> str:
        """A line for people."""
        nodes = f"{self.nodes_min}-{self.nodes}" if self.nodes_min < self.nodes else str(self.nodes)
        size = [f"{nodes} node{'s' if self.nodes > 1 else ''}"]
        size += [f"{self.gpus_per_node} GPUs"] if self.gpus_per_node else []
        size += [f"{self.cpus_per_node} CPUs"] if self.cpus_per_node else []
        parts = [" x ".join(size)]
        if self.tasks > 1:
            parts.insert(0, f"{self.tasks} tasks" + (f", {self.at_once} at once" if self.at_once else ""))
        parts.append(f"partition {self.partition or '(default)'}")
        parts.append(f"time {self.time or '(default)'}")
        if self.hours is not None:
            times = f", {self.allocations} allocations" if self.allocations else ""
            parts.append(f"about {self.hours:,.1f} h{times}")
        return f"{self.part:<17} {'; '.join(parts)}"


def plan_parts(recipe: Recipe, profile: StageProfile, plan: Plan) -> list[PartPlan]:
    """What each part of the run asks for; those that are complete too.

    Raises: RecipeError for a training that the profile has no room for.
    """
    found = []
    for part in parts_of(recipe, profile, stages_of(recipe)):
        asked = resources_of(part, recipe, profile)
        gpus = asked.gpus or 0
        hours = None
        if part.stage.spans_nodes and gpus:
            hours = plan.gpu_hours / plan.trainings / (gpus * (asked.nodes or 1))
        limit = seconds_of(asked.time) / 3600 if asked.time else None
        found.append(
            PartPlan(
                part=part.name,
                tasks=part.tasks,
                at_once=asked.at_once if part.does == "tasks" else None,
                nodes=asked.nodes or 1,
                nodes_min=asked.nodes_min or 1,
                gpus_per_node=gpus,
                cpus_per_node=asked.cpus,
                memory=asked.memory,
                partition=asked.partition,
                time=asked.time,
                hours=hours,
                allocations=None if hours is None or limit is None else max(1, math.ceil(hours / limit)),
            )
        )
    return found


def as_text(parts: list[PartPlan]) -> str:
    """The parts below each other."""
    return "\n".join(f"job {part.as_text()}" for part in parts)


def as_dicts(parts: list[PartPlan]) -> list[dict[str, Any]]:
    return [asdict(part) for part in parts]


def slots_of_training(recipe: Recipe, profile: StageProfile) -> int:
    """GPUs of the nodes of the recipe's first training; 0 where they have none."""
    asked = profile.resources(trainings_of(recipe)[0])
    return (asked.gpus or 0) * (asked.nodes or 1)
