"""Commands that run a recipe on a SLURM cluster, and look after it."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from pipeline.commands.arguments import OVERRIDES_HELP, load, takes_recipe

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
    from pipeline.cluster import submit as submitting
    from pipeline.cluster.profiles import load_profile

    loaded = load(recipe, overrides)
    if not dry_run:
        submit_chain(loaded, cluster, first=first, last=last)
        return
    planned = submitting.plan_submission(loaded, load_profile(cluster), first=first, last=last)
    click.echo(submitting.as_scripts(planned))


def submit_chain(recipe: Any, cluster: str, *, first: str | None = None, last: str | None = None) -> None:
    """Submits a recipe (a `pipeline.recipe.recipe.Recipe`) and says what was, and where to look."""
    from pipeline.cluster import submit as submitting
    from pipeline.cluster.profiles import load_profile

    click.echo(submitting.as_text(submitting.submit(recipe, load_profile(cluster), first=first, last=last)))
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
    from pipeline.cluster.status import run_of, status_of
    from pipeline.cluster.status_text import as_text

    folder = run_of(run)
    while True:
        found = status_of(folder)
        if watch and not as_json:
            click.clear()
        click.echo(json.dumps(found.as_dict(), indent=2) if as_json else as_text(found))
        if not watch or found.is_settled:
            break
        time.sleep(every)
    if any(stage.state in ("failed", "lost", "cancelled") for stage in found.stages):
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
    from pipeline.cluster import logs as reading
    from pipeline.cluster.status import run_of, status_of

    folder = run_of(run)
    path = reading.log_of(folder, stage, task, node)
    if only_path:
        click.echo(path)
        return
    for text in reading.follow(path, (lambda: status_of(folder).is_settled) if follow else (lambda: True)):
        click.echo(text, nl=False)


@click.command()
@_takes_run
@click.option("--stage", metavar="STAGE", help="Only the jobs of this stage.")
def cancel(run: str, stage: str | None) -> None:
    """End the jobs of a run, and no other's. What they finished stays: drope submit goes on from it."""
    from pipeline.cluster.cancel import cancel as cancel_jobs
    from pipeline.cluster.status import run_of

    ended = cancel_jobs(run_of(run), stage)
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
    from pipeline.cluster.job import Work, run_job

    stage, _, merge = part.partition("-")
    does = "merge" if merge else ("tasks" if of > 1 else "all")
    sizes = {
        "of": of,
        "offset": offset,
        "per_node": per_node,
        "nodes_min": nodes_min,
        "barren": barren,
        "exclude": exclude,
    }
    sys.exit(run_job(load(recipe, ()), Work(stage=stage, does=does, part=part, **sizes)))


COMMANDS = (submit, status, logs, cancel, job)
