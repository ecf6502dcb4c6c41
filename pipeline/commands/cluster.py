"""Commands that run a recipe on a SLURM cluster, and look after it."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.arguments import OVERRIDES_HELP, load, takes_recipe

if TYPE_CHECKING:
    from pipeline.recipe.recipe import Recipe

_takes_run = click.argument("run", metavar="RUN")


@click.command(epilog=OVERRIDES_HELP)
@takes_recipe
@click.option("--cluster", required=True, metavar="C", help="Profile of the cluster: a name in clusters/, or a path.")
@click.option("--from", "first", metavar="STAGE", help="First stage to submit; those before it must be complete.")
@click.option("--until", "last", metavar="STAGE", help="Last stage to submit.")
@click.option("--dry-run", is_flag=True, help="Print the exact scripts and sbatch commands; writes nothing.")
def submit(
    recipe: Path, overrides: tuple[str, ...], cluster: str, first: str | None, last: str | None, dry_run: bool
) -> None:
    """Run a recipe's stages as a chain of SLURM jobs.

    What is complete, or waits or runs already, is not submitted again, so the same command goes on after a failure: of
    an array it submits only the tasks that are not done. Jobs that reach their time limit, are preempted or lose a node
    requeue themselves and go on from the newest checkpoint.

    \b
        drope fetch  RECIPE                     what the Hub has, while there is a network
        drope submit RECIPE --cluster C --dry-run
        drope submit RECIPE --cluster C
        drope status runs/NAME --watch

    Scripts, logs and what was submitted lie in jobs/ in the run's folder. Names of jobs end with eight characters that
    are the run's own, drawn when it is first submitted.
    """
    loaded = load(recipe, overrides)
    if not dry_run:
        submit_chain(loaded, cluster, first=first, last=last)
        return
    from pipeline.cluster.profiles import load_profile
    from pipeline.cluster.submission.submit import planned_scripts
    from pipeline.cluster.submission.text import as_scripts

    click.echo(as_scripts(planned_scripts(loaded, load_profile(cluster), first=first, last=last)))


def submit_chain(recipe: "Recipe", cluster: str, *, first: str | None = None, last: str | None = None) -> None:
    """Submits a recipe and says what was submitted, and where to look."""
    from pipeline.cluster.profiles import load_profile
    from pipeline.cluster.submission.submit import submit as submit_jobs
    from pipeline.cluster.submission.text import as_text

    click.echo(as_text(submit_jobs(recipe, load_profile(cluster), first=first, last=last)))
    click.echo(f"status: drope status {recipe.folder} --watch")


@click.command()
@_takes_run
@click.option("--watch", is_flag=True, help="Show it again every few seconds until nothing waits or runs.")
@click.option("--every", type=click.FloatRange(min=0.2), default=10.0, show_default=True, help="Seconds, with --watch.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(run: str, watch: bool, every: float, as_json: bool) -> None:
    """Say what has become of a run on a cluster: RUN is its folder, or its name in ./runs.

    Per stage: state, jobs, tasks, step, tokens, loss, speed, estimated end, and why it failed, with the end of its log.
    States follow from the manifests, from what the jobs wrote down themselves, and from SLURM; without accounting, and
    without SLURM, from what there is. Exit code 1 if a stage has failed.
    """
    from pipeline.cluster.folder import find_run
    from pipeline.cluster.status.run_status import status_of
    from pipeline.cluster.status.text import as_text

    folder = find_run(run)
    while True:
        run_status = status_of(folder)
        if watch and not as_json:
            click.clear()
        click.echo(json.dumps(run_status.as_dict(), indent=2) if as_json else as_text(run_status))
        if not watch or run_status.is_settled:
            break
        time.sleep(every)
    if any(stage.ended_badly for stage in run_status.stages):
        sys.exit(1)


@click.command()
@_takes_run
@click.argument("stage", required=False)
@click.option("--task", type=click.IntRange(min=0), metavar="I", help="Of task I of an array.")
@click.option("--node", metavar="NAME", help="Of this node of a training; the first node's is the job's own log.")
@click.option("--follow", is_flag=True, help="Go on with what comes, until the run has nothing that waits or runs.")
@click.option("--path", "only_path", is_flag=True, help="Print where the log is instead.")
def logs(run: str, stage: str | None, task: int | None, node: str | None, follow: bool, only_path: bool) -> None:
    """Print the log of a run's job.

    Of STAGE (data, data-merge, recalibration ...), or else of the stage that failed or runs.
    """
    from pipeline.cluster.folder import find_run
    from pipeline.cluster.status.log_text import follow as follow_log
    from pipeline.cluster.status.logs import log_of
    from pipeline.cluster.status.run_status import status_of

    folder = find_run(run)
    path = log_of(folder, stage, task, node)
    if only_path:
        click.echo(path)
        return
    for text in follow_log(path, (lambda: status_of(folder).is_settled) if follow else (lambda: True)):
        click.echo(text, nl=False)


@click.command()
@_takes_run
@click.option("--stage", metavar="STAGE", help="Only the jobs of this stage.")
def cancel(run: str, stage: str | None) -> None:
    """End the jobs of a run, and no other's. What they finished stays: drope submit goes on from it."""
    from pipeline.cluster.cancel import cancel as cancel_jobs
    from pipeline.cluster.folder import find_run

    ended = cancel_jobs(find_run(run), stage)
    click.echo(f"cancelled: {', '.join(map(str, ended))}" if ended else "nothing waits or runs")


@click.command(hidden=True)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--part", required=True, help="Stage, or STAGE-merge.")
@click.option("--of", type=click.IntRange(min=1), default=1, help="Number of tasks; 1: the whole stage.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Task number less SLURM's array index.")
@click.option("--per-node", type=click.IntRange(min=1), default=1, help="Processes of a training on every node.")
@click.option("--nodes-min", type=click.IntRange(min=1), default=1, help="Fewest nodes that it runs on.")
@click.option("--exclude", default="", help="Nodes that the profile never uses.")
@click.option("--barren", type=click.IntRange(min=1), default=3, help="Allocations in a row that may bring nothing.")
def job(
    recipe: Path, part: str, of: int, offset: int, per_node: int, nodes_min: int, exclude: str, barren: int
) -> None:
    """What the jobs of `drope submit` run, on every node; not for use by hand."""
    from pipeline.cluster.allocation.job import run_job
    from pipeline.cluster.job_options import JobOptions

    options = JobOptions(
        part=part,
        of=of,
        offset=offset,
        per_node=per_node,
        nodes_min=nodes_min,
        exclude=exclude,
        barren=barren,
    )
    sys.exit(run_job(load(recipe, ()), options))


COMMANDS = (submit, status, logs, cancel, job)
