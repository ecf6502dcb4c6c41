"""What a stage's job asks a cluster for: nodes, and processes on each of them."""

from pipeline.cluster.profiles import StageProfile
from pipeline.cluster.spread import usable_slots
from pipeline.cluster.stage_jobs import StageJob
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe
from slurm.profile import Resources


def resources_of(stage_job: StageJob, recipe: Recipe, profile: StageProfile) -> Resources:
    """What the job asks for: trainings as many nodes as they need, all others one.

    Raises: RecipeError for a training that the profile has no room for.
    """
    asked = profile.resources(stage_job.resources_of)
    if not stage_job.spans_nodes:
        return asked.model_copy(update={"nodes": 1, "nodes_min": 1})
    most, fewest = nodes_of_training(stage_job.stage.name, recipe, asked)
    return asked.model_copy(update={"nodes": most, "nodes_min": fewest})


def nodes_of_training(stage: str, recipe: Recipe, asked: Resources) -> tuple[int, int]:
    """Most and fewest nodes on which the recipe's training runs.

    Raises: RecipeError if it needs more processes than there is room for, with the ways out.
    """
    tensor_parallel, data_parallel = recipe.surgery.tensor_parallel, recipe.recalibration.data_parallel
    nodes, per_node = asked.nodes or 1, usable_slots(slots_per_node(asked), tensor_parallel)
    fewest = min(nodes, max(asked.nodes_min or nodes, -(-tensor_parallel // per_node)))
    processes = tensor_parallel * (1 if data_parallel == "auto" else data_parallel)
    room, kind = nodes * per_node, "GPUs" if asked.gpus else "processes"
    if processes > room:
        most = room // tensor_parallel
        fewer = f"recalibration.data_parallel={most} on the command line, or " if most else ""
        raise RecipeError(
            f"{stage} wants {processes} {kind} (surgery.tensor_parallel {tensor_parallel} x "
            f"recalibration.data_parallel {data_parallel}); the cluster profile gives {nodes} nodes of {per_node} that "
            f"are usable = {room}: {fewer}nodes: {-(-processes // per_node)} below stages.{stage} of the profile"
        )
    if data_parallel == "auto":
        return nodes, fewest
    needed = -(-processes // per_node)
    return needed, min(needed, fewest)


def slots_per_node(asked: Resources) -> int:
    """Processes of a training on one node: one to a GPU, or as many as the profile says."""
    return asked.gpus or asked.processes or 1
