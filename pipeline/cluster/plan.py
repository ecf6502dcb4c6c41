"""What a recipe would ask a cluster for: nodes, GPUs, time."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.cluster.profiles import StageProfile
from pipeline.cluster.resources import resources_of
from pipeline.cluster.stage_jobs import StageJob, stage_jobs_of
from pipeline.recipe.recipe import Recipe
from pipeline.stages.order import stages_of
from pipeline.stages.training import trainings_of
from slurm.profile import Resources, seconds_of


@dataclass(frozen=True)
class JobPlan:
    """What one job, or array of jobs, asks for."""

    part: str
    """Name of the stage job."""
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
        facts = [" x ".join(size)]
        if self.tasks > 1:
            facts.insert(0, f"{self.tasks} tasks" + (f", {self.at_once} at once" if self.at_once else ""))
        facts.append(f"partition {self.partition or '(default)'}")
        facts.append(f"time {self.time or '(default)'}")
        if self.hours is not None:
            times = f", {self.allocations} allocations" if self.allocations else ""
            facts.append(f"about {self.hours:,.1f} h{times}")
        return f"{self.part:<17} {'; '.join(facts)}"


def plan_jobs(recipe: Recipe, profile: StageProfile, gpu_hours: float) -> list[JobPlan]:
    """What each job of the run asks for; those of complete stages too. gpu_hours: of one training.

    Raises: RecipeError for a training that the profile has no room for.
    """
    return [
        _plan_job(stage_job, resources_of(stage_job, recipe, profile), gpu_hours)
        for stage_job in stage_jobs_of(recipe, profile, stages_of(recipe))
    ]


def _plan_job(stage_job: StageJob, asked: Resources, gpu_hours: float) -> JobPlan:
    gpus, nodes = asked.gpus or 0, asked.nodes or 1
    hours = gpu_hours / (gpus * nodes) if stage_job.spans_nodes and gpus else None
    limit = seconds_of(asked.time) / 3600 if asked.time else None
    return JobPlan(
        part=stage_job.name,
        tasks=stage_job.tasks,
        at_once=asked.at_once if stage_job.is_array else None,
        nodes=nodes,
        nodes_min=asked.nodes_min or 1,
        gpus_per_node=gpus,
        cpus_per_node=asked.cpus,
        memory=asked.memory,
        partition=asked.partition,
        time=asked.time,
        hours=hours,
        allocations=None if hours is None or limit is None else max(1, math.ceil(hours / limit)),
    )


def as_text(jobs: list[JobPlan]) -> str:
    """The jobs below each other."""
    return "\n".join(f"job {job.as_text()}" for job in jobs)


def as_dicts(jobs: list[JobPlan]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(job) for job in jobs]


def slots_of_training(recipe: Recipe, profile: StageProfile) -> int:
    """GPUs of the nodes of the recipe's first training; 0 where they have none."""
    asked = profile.resources(trainings_of(recipe)[0])
    return (asked.gpus or 0) * (asked.nodes or 1)
