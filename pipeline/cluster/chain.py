"""Parts of a run as SLURM jobs: what each asks for and runs."""

import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.parts import Part
from pipeline.cluster.profiles import StageProfile
from pipeline.cluster.spread import usable_slots
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe
from slurm.job import Job
from slurm.profile import Resources

OFFLINE = ("export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 # all of it was fetched before",)


def job_of(
    part: Part,
    recipe: Recipe,
    profile: StageProfile,
    folder: JobsFolder,
    *,
    name: str,
    recipe_file: Path,
    working_dir: Path,
    indices: Sequence[int] = (),
    offset: int = 0,
) -> Job:
    """The job of a part. `indices`: of SLURM's array, for one; task number = index + `offset`.

    Raises: RecipeError for a training that the profile has no room for.
    """
    resources = resources_of(part, recipe, profile)
    words = [*shlex.split(profile.drope or own_command()), "job", str(recipe_file), "--part", part.name]
    if part.does == "tasks":
        words += ["--of", str(part.tasks), *(["--offset", str(offset)] if offset else [])]
    if part.stage.spans_nodes:
        words += ["--per-node", str(slots_per_node(resources)), "--nodes-min", str(resources.nodes_min)]
        words += ["--exclude", resources.exclude] if resources.exclude else []
    return Job(
        name=name,
        command=(*words, "--barren", str(profile.restarts.without_progress)),
        resources=resources,
        folder=working_dir,
        log=folder.logs.absolute() / part.name,
        verdict=folder.verdicts.absolute() / part.name,
        excluded=folder.excluded(part.name).absolute(),
        array=tuple(indices),
        files=(recipe_file,),
        environment=OFFLINE,
        program="drope",
        resumed_by="drope submit",
    )


def own_command() -> str:
    """The drope command of this installation, by its full path."""
    return f"{shlex.quote(sys.executable)} -m pipeline.cli"


def resources_of(part: Part, recipe: Recipe, profile: StageProfile) -> Resources:
    """What a job of the part asks for: trainings as many nodes as they need, all others one.

    Raises: RecipeError for a training that the profile has no room for.
    """
    asked = profile.resources(part.resources_of)
    if not part.stage.spans_nodes:
        return asked.model_copy(update={"nodes": 1, "nodes_min": 1})
    most, fewest = nodes_of_training(part.stage.name, recipe, asked)
    return asked.model_copy(update={"nodes": most, "nodes_min": fewest})


def nodes_of_training(stage: str, recipe: Recipe, asked: Resources) -> tuple[int, int]:
    """Most and fewest nodes on which the recipe's training runs.

    Raises: RecipeError if it wants more processes than there is room for, with the ways out.
    """
    tensor_parallel, wanted = recipe.surgery.tensor_parallel, recipe.recalibration.data_parallel
    nodes, per_node = asked.nodes or 1, usable_slots(slots_per_node(asked), tensor_parallel)
    fewest = min(nodes, max(asked.nodes_min or nodes, -(-tensor_parallel // per_node)))
    processes = tensor_parallel * (1 if wanted == "auto" else wanted)
    room, kind = nodes * per_node, "GPUs" if asked.gpus else "processes"
    if processes > room:
        most = room // tensor_parallel
        fewer = f"recalibration.data_parallel={most} on the command line, or " if most else ""
        raise RecipeError(
            f"{stage} wants {processes} {kind} (surgery.tensor_parallel {tensor_parallel} x "
            f"recalibration.data_parallel {wanted}); the cluster profile gives {nodes} nodes of {per_node} that are "
            f"usable = {room}: {fewer}nodes: {-(-processes // per_node)} below stages.{stage} of the profile"
        )
    if wanted == "auto":
        return nodes, fewest
    needed = -(-processes // per_node)
    return needed, min(needed, fewest)


def slots_per_node(asked: Resources) -> int:
    """Processes of a training on one node: one to a GPU, or as many as the profile says."""
    return asked.gpus or asked.processes or 1


def recipe_copy(recipe: Recipe, folder: JobsFolder) -> Path:
    """Where the jobs of a submission find the resolved recipe; one that is submitted later does not change it."""
    return folder.recipe(hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()).absolute()


def write_recipe_copy(recipe: Recipe, folder: JobsFolder) -> Path:
    """Writes it there."""
    from pipeline.recipe.recipe import write_recipe

    path = recipe_copy(recipe, folder)
    if not path.is_file():
        write_recipe(recipe, path)
    return path
