"""Finding and checking the profile of a cluster."""

import difflib
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.recipe.yaml_files import read_yaml, validated
from pipeline.stages import order
from slurm.profile import ClusterProfile

CLUSTERS = Path(__file__).resolve().parents[2] / "clusters"


def load_profile(name: str) -> ClusterProfile:
    """A profile by its path, or by its name in ./clusters or in the clusters folder of this installation.

    Raises: RecipeError naming the file, the field, the value and the nearest valid choice.
    """
    path = profile_path(name)
    profile = validated(ClusterProfile, read_yaml(path, "cluster profile"), path)
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
