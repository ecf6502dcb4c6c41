"""A stage's job as the batch script that is submitted."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.job_options import JobOptions
from pipeline.cluster.profiles import StageProfile
from pipeline.cluster.recipe_copies import copy_path
from pipeline.cluster.records import JobNames
from pipeline.cluster.resources import resources_of, slots_per_node
from pipeline.cluster.stage_jobs import StageJob
from pipeline.cluster.submission.request import Request
from slurm.job import Job
from slurm.profile import Resources
from slurm.script import script_text

_OFFLINE = ("export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 # all of it was fetched before",)


@dataclass(frozen=True)
class Script:
    """A script that is not submitted yet."""

    stage_job: StageJob
    path: Path
    text: str
    job: Job
    offset: int
    """Number of a task less its index in SLURM's array."""

    @property
    def tasks(self) -> list[int]:
        """Numbers of its tasks among all of the stage job; empty for a job that is no array."""
        return [index + self.offset for index in self.job.array]


def script_of(
    request: Request,
    stage_job: StageJob,
    folder: JobsFolder,
    names: JobNames,
    *,
    indices: Sequence[int] = (),
    offset: int = 0,
) -> Script:
    """The script of a stage job. indices: of SLURM's array, for one; task number = index + `offset`.

    Raises: SlurmError for a folder whose name cannot stand in a script.
    """
    part, recipe_file = stage_job.name, copy_path(request.recipe, folder)
    resources = resources_of(stage_job, request.recipe, request.profile)
    options = options_of(stage_job, resources, request.profile, offset)
    drope = shlex.split(request.profile.drope or own_command())
    job = Job(
        name=names.write(part, offset),
        command=(*drope, "job", str(recipe_file), *options.as_words()),
        resources=resources,
        folder=Path.cwd(),
        log=folder.logs.absolute() / part,
        verdict=folder.verdicts.absolute() / part,
        excluded=folder.excluded(part).absolute(),
        array=tuple(indices),
        files=(recipe_file,),
        environment=_OFFLINE,
        program="drope",
        resumed_by="drope submit",
    )
    path = folder.scripts / f"{part}{f'-{offset}' if offset else ''}.sh"
    return Script(stage_job, path, script_text(job, request.profile), job, offset)


def options_of(stage_job: StageJob, resources: Resources, profile: StageProfile, offset: int) -> JobOptions:
    """What the job is told on its command line."""
    plain = JobOptions(
        part=stage_job.name,
        of=stage_job.tasks,
        offset=offset,
        barren=profile.restarts.without_progress,
    )
    if not stage_job.spans_nodes:
        return plain
    return replace(
        plain,
        per_node=slots_per_node(resources),
        nodes_min=resources.nodes_min or 1,
        exclude=resources.exclude or "",
    )


def own_command() -> str:
    """The drope command of this installation, by its full path."""
    return f"{shlex.quote(sys.executable)} -m pipeline.cli"
