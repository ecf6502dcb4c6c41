"""What has become of a run: its manifests, what its jobs said of themselves, and SLURM, none of them trusted alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.recipe_copies import recipe_of
from pipeline.cluster.status.knowledge import ask_slurm
from pipeline.cluster.status.stage_status import StageStatus, stage_status
from pipeline.stages.order import stages_of


@dataclass(frozen=True)
class RunStatus:
    """All stages of a run."""

    run: str
    stages: tuple[StageStatus, ...]
    notes: tuple[str, ...] = ()
    """What could not be asked."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing of it waits or runs."""
        return not any(stage.state in ("running", "waiting") for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"run": self.run, "stages": [stage.as_dict() for stage in self.stages], "notes": list(self.notes)}


def status_of(run: Path) -> RunStatus:
    """Of the run in this folder. Raises: RecipeError if it holds none."""
    recipe, folder = recipe_of(run), JobsFolder(run)
    journal = folder.submitted()
    knowledge = ask_slurm(folder, recipe.name, journal)
    stages = [
        stage_status(stage.name, [job for job in journal if job.stage == stage.name], folder, knowledge)
        for stage in stages_of(recipe)
    ]
    return RunStatus(recipe.name, tuple(stages), (knowledge.note,) if knowledge.note else ())
