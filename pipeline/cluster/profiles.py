"""Finding and checking the profile of a cluster."""

import difflib
from pathlib import Path

from pydantic import Field, model_validator

from pipeline.errors import RecipeError
from pipeline.recipe.yaml_files import read_yaml, validated
from pipeline.stages import order
from slurm.errors import SlurmError
from slurm.profile import ClusterProfile, Line, PoolResources, Resources

CLUSTERS = Path(__file__).resolve().parents[2] / "clusters"


class StageProfile(ClusterProfile):
    """How one cluster is used for the stages of a run: a file in clusters/."""

    stages: dict[str, PoolResources] = Field(
        default_factory=dict,
        description="stages by name: pool and what differs; tasks and at_once are for data and evaluation, nodes, "
        "nodes_min and processes for trainings, which run a process on each GPU; others take one node",
    )
    drope: Line | None = Field(None, description="the drope command on nodes; default: that of this installation")

    @model_validator(mode="after")
    def _stages_resolve(self) -> "StageProfile":
        for name in self.stages:
            try:
                self.resources(name)  # nodes and nodes_min may come from different places
            except SlurmError as error:
                raise ValueError(f"stages.{name}.{error}") from error
        return self

    def resources(self, stage: str) -> Resources:
        """What a job of the stage asks for."""
        return self.resolved(self.stages.get(stage, PoolResources()))


def load_profile(name: str) -> StageProfile:
    """A profile by its path, or by its name in ./clusters or in the clusters folder of this installation.

    Raises: RecipeError naming the file, the field, the value and the nearest valid choice.
    """
    path = profile_path(name)
    profile = validated(StageProfile, read_yaml(path, "cluster profile"), path)
    known = [stage.name for stage in order.STAGES]
    for stage in profile.stages:
        if stage not in known:
            near = difflib.get_close_matches(stage, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"stages are {', '.join(known)}"
            raise RecipeError(f"{path}: stages.{stage}: no such stage; {hint}")
    return profile


def profile_path(name: str) -> Path:
    """Raises: RecipeError if there is no such profile."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise RecipeError(f"--cluster {name}: no such file")
    folders = (Path("clusters"), CLUSTERS)
    for folder in folders:
        if (path := folder / f"{name}.yaml").is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise RecipeError(f"--cluster {name}: no clusters/{name}.yaml; {hint}; or give the path of a profile")
