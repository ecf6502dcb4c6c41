"""What `drope submit` is asked for, after every refusal that needs neither SLURM nor the run's folder."""

from dataclasses import dataclass

from pipeline.cluster.profiles import StageProfile
from pipeline.cluster.resources import resources_of
from pipeline.cluster.stage_jobs import StageJob, stage_jobs_of, stages_between
from pipeline.errors import RecipeError
from pipeline.recipe.asset_states import asset_states
from pipeline.recipe.recipe import Recipe
from pipeline.runs.folder import is_complete
from pipeline.stages.order import stages_of


@dataclass(frozen=True)
class Request:
    """Stages of a recipe to run on a cluster."""

    recipe: Recipe
    profile: StageProfile
    complete: tuple[str, ...]
    """Stages that were asked for and are complete."""
    jobs: tuple[StageJob, ...]
    """Of the stages that were asked for and are not, in order."""
    jobs_of_run: tuple[StageJob, ...]
    """Of all stages of the run that are not complete."""


def checked_request(recipe: Recipe, profile: StageProfile, first: str | None, last: str | None) -> Request:
    """The stages from `first` to `last` (None: from the first one, to the last one) as jobs.

    Raises: RecipeError and the packages' own errors for what could not work as a job, which has no network.
    """
    from eval.tasks.hub import offline
    from pipeline.stages.checks import check_recipe

    stages = stages_between(recipe, first, last)
    with offline():
        unfinished = [stage for stage in stages_of(recipe) if not is_complete(stage, recipe)]
        pending = [stage for stage in stages if stage in unfinished]
        jobs_of_run = stage_jobs_of(recipe, profile, unfinished)
        asked = {stage.name for stage in stages}
        jobs = [job for job in jobs_of_run if job.stage.name in asked]
        for job in jobs:
            resources_of(job, recipe, profile)
        if pending:
            refuse_absent_assets(recipe)
            check_recipe(recipe, pending)
    complete = tuple(stage.name for stage in stages if stage not in pending)
    return Request(recipe, profile, complete, tuple(jobs), tuple(jobs_of_run))


def refuse_absent_assets(recipe: Recipe) -> None:
    """Raises: RecipeError if the jobs would lack something that the Hub has."""
    absent = [
        state.asset
        for state in asset_states(recipe)
        if state.lack is not None and state.asset.repository and not state.asset.optional
    ]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise RecipeError(f"not in this machine's Hub cache: {absent[0]}{more}; bring it first: drope fetch RECIPE")
