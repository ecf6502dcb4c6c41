"""Commands that run a recipe's stages on this machine, all or one."""

import json
from pathlib import Path

import click

from pipeline.commands.arguments import OVERRIDES_HELP, checked_task, load, run_stages, takes_recipe

_STAGE_COMMANDS = {
    "surgery": ("surgery", "Drop the positional embeddings and cut the checkpoint for tensor parallelism."),
    "recalibrate": ("recalibration", "Train without positional embeddings at the original context length."),
    "control": ("control", "Train the same model with RoPE kept on the same rows (recalibration.control: true)."),
    "export": ("export", "Write the trained weights as a Hugging Face folder."),
}


@click.command(epilog=OVERRIDES_HELP)
@takes_recipe
@click.option("--stage", "only", multiple=True, metavar="STAGE", help="Only this stage; may be given several times.")
def run(recipe: Path, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Run a recipe's stages on this machine.

    Stages that are complete with these settings are skipped; a stage that was cut off goes on. A stage that is there
    with other settings is refused with the difference named, never redone over.
    """
    run_stages(recipe, overrides, only)


@click.command(epilog=OVERRIDES_HELP)
@takes_recipe
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.option("--cluster", metavar="C", help="Also say what its jobs would ask this cluster for (see drope submit).")
def plan(recipe: Path, overrides: tuple[str, ...], as_json: bool, cluster: str | None) -> None:
    """Show what would run: steps, tokens, memory per GPU, GPU-hours, disk; nothing is written."""
    loaded = load(recipe, overrides)
    from pipeline.tools.plan import make_plan

    if cluster is None:
        run_plan = make_plan(loaded)
        click.echo(json.dumps(run_plan.as_dict(), indent=2) if as_json else run_plan.as_text())
        return
    from pipeline.cluster import plan as planning
    from pipeline.cluster.profiles import load_profile

    profile = load_profile(cluster)
    run_plan = make_plan(loaded, planning.slots_of_training(loaded, profile))
    jobs = planning.plan_jobs(loaded, profile, run_plan.gpu_hours_of_training)
    if as_json:
        click.echo(json.dumps(run_plan.as_dict() | {"jobs": planning.as_dicts(jobs)}, indent=2))
        return
    click.echo(f"{run_plan.as_text()}\n{planning.as_text(jobs)}")


@click.command(epilog=OVERRIDES_HELP)
@takes_recipe
@click.option("--list", "listed", is_flag=True, help="Only say what is wanted and what of it is there; asks no server.")
@click.option("--json", "as_json", is_flag=True, help="Print that list as JSON.")
def fetch(recipe: Path, overrides: tuple[str, ...], listed: bool, as_json: bool) -> None:
    """Bring all that RECIPE needs from the Hugging Face Hub into this machine's cache.

    Model, tokenizer, Hub data sets of data.sources, and the data of the evaluation's tasks. Then all of it is looked
    for with the Hub shut off, so exit code 0 means that a run needs no Hub. For clusters: call it on a login node that
    has a network, with HF_HOME on a disk that the compute nodes see; the jobs then run without a network:

    \b
        export HF_HOME=/shared/hf
        drope fetch RECIPE                       on the login node
        HF_HUB_OFFLINE=1 drope run RECIPE        in the job

    What is in the cache is not asked for again, so a second call only brings what is missing, and needs no network if
    that is nothing. Paths are not copied, only looked for.
    """
    loaded = load(recipe, overrides)
    if not listed and not as_json:
        from pipeline.tools import fetch as fetching

        click.echo(fetching.summary(fetching.fetch(loaded)))
        return
    from pipeline.recipe.asset_states import asset_states

    states = asset_states(loaded)
    if as_json:
        click.echo(json.dumps([state.as_dict() for state in states], indent=2))
        return
    click.echo("\n".join(state.as_text() for state in states))
    there = sum(state.lack is None for state in states)
    rest = "" if there == len(states) else "; drope fetch brings what the Hub has"
    click.echo(f"{there} of {len(states)} are there{rest}")


@click.command("prepare-data", epilog=OVERRIDES_HELP)
@takes_recipe
@click.option("--task", type=click.IntRange(min=0), metavar="I", help="Do only task I (0 ... N-1), no merge.")
@click.option("--of", type=click.IntRange(min=1), metavar="N", help="Number of tasks; goes with --task.")
@click.option("--workers", type=click.IntRange(min=1), metavar="W", help="Processes side by side; default: all cores.")
@click.option("--merge", is_flag=True, help="Only put together what the tasks made; refuse if a piece is missing.")
def prepare_data(
    recipe: Path, overrides: tuple[str, ...], task: int | None, of: int | None, workers: int | None, merge: bool
) -> None:
    """Tokenize the documents into memory-mapped shards. One stage of RECIPE.

    Alone it does all the work that is not done yet, then merges. On a cluster, the same work in N tasks, e.g. of a
    job array, which may run side by side, in any order, and again after they were killed:

    \b
        drope prepare-data RECIPE --task I --of N        for I = 0 ... N-1
        drope prepare-data RECIPE --merge                when all are done

    The shards are the same, byte for byte, whatever N and W are.
    """
    checked_task(task, of, merge)
    given = (*overrides, *([f"data.workers={workers}"] if workers else []))
    if task is None and not merge:
        run_stages(recipe, given, ("data",))
        return
    from pipeline.stages.data import DataStage
    from pipeline.stages.run import run_task

    loaded, stage = load(recipe, given), DataStage()
    if task is not None and of is not None:
        run_task(stage, loaded, task, of)
    else:
        stage.check_merge(loaded)
        run_stages(recipe, given, ("data",))


def _stage_command(name: str, stage: str, text: str) -> click.Command:
    @takes_recipe
    def command(recipe: Path, overrides: tuple[str, ...], dtype: str | None = None, step: str | None = None) -> None:
        given = (*overrides, *([f"export.dtype={dtype}"] if dtype else []))
        if step is None:
            run_stages(recipe, given, (stage,))
            return
        from pipeline.tools.snapshot import export_step

        click.echo(f"model: {export_step(load(recipe, given), step).resolve()}")

    if stage == "export":
        names = click.Choice(["float32", "bfloat16", "float16", "source"])
        command = click.option("--dtype", type=names, help="Of the written weights: export.dtype.")(command)
        text += (
            " With --step it writes a checkpoint of a training that may still be under way to snapshots/ instead:"
            " the number of its step, newest, or best by validation."
        )
        command = click.option("--step", metavar="STEP", help="A step that has a checkpoint, newest or best.")(command)
    text += " One stage of RECIPE; the stages before it must be complete."
    return click.command(name, help=text, epilog=OVERRIDES_HELP)(command)


@click.command(epilog=OVERRIDES_HELP)
@takes_recipe
@click.option("--task", type=click.IntRange(min=0), metavar="I", help="Score only share I (0 ... N-1), no results.")
@click.option("--of", type=click.IntRange(min=1), metavar="N", help="Number of shares; goes with --task.")
@click.option("--merge", is_flag=True, help="Only put together what the tasks scored; refuse if a unit is missing.")
def evaluate(recipe: Path, overrides: tuple[str, ...], task: int | None, of: int | None, merge: bool) -> None:
    """Score the exported model and its RoPE-scaled rivals. One stage of RECIPE; those before it must be complete.

    Alone it scores all that is not scored yet, then writes the results. On a cluster, the same cells variant x task x
    length in N tasks, e.g. of a job array, which may run side by side and again after they were killed:

    \b
        drope evaluate RECIPE --task I --of N        for I = 0 ... N-1
        drope evaluate RECIPE --merge                when all are done
    """
    checked_task(task, of, merge)
    if task is None and not merge:
        run_stages(recipe, overrides, ("evaluation",))
        return
    from pipeline.stages.evaluation import EvaluationStage
    from pipeline.stages.run import run_task

    loaded, stage = load(recipe, overrides), EvaluationStage()
    if task is not None and of is not None:
        run_task(stage, loaded, task, of)
    else:
        stage.check_merge(loaded)
        run_stages(recipe, overrides, ("evaluation",))


@click.command(epilog=OVERRIDES_HELP)
@click.argument("given", nargs=-1, required=True, metavar="RECIPE [KEY=VALUE]... | RUN RUN...")
@click.option("--compare", is_flag=True, help="Compare runs instead, given by their folders.")
@click.option("--out", type=click.Path(path_type=Path), metavar="PAGE", help="With --compare; default: compare.html.")
def report(given: tuple[str, ...], compare: bool, out: Path | None) -> None:
    """Write the HTML page of the run, or one that compares runs.

    \b
        drope report RECIPE [KEY=VALUE]...
        drope report --compare RUN1 RUN2... [--out PAGE]

    Of RECIPE it is one stage; the stages before it must be complete. With --compare it writes one page of the runs in
    these folders (runs/NAME): the DroPE of each side by side, and its differences to the first run's.
    """
    if not compare:
        if out is not None:
            raise click.UsageError("--out goes with --compare; the page of a run lies in its folder")
        run_stages(Path(given[0]), given[1:], ("report",))
        return
    from pipeline.report.compare_page import write_comparison
    from pipeline.stages.order import REPORT

    page = write_comparison([Path(folder) for folder in given], out or Path("compare.html"), REPORT.reported)
    click.echo(f"comparison: {page.resolve()}")


@click.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--pretrain", is_flag=True, help="Instead reproduce the RoPE checkpoint that the demo starts from.")
@click.option("--cluster", metavar="C", help="Submit it to this SLURM cluster, as drope submit does.")
def demo(overrides: tuple[str, ...], pretrain: bool, cluster: str | None) -> None:
    """The paper's experiment in miniature, on two CPU cores in minutes.

    Writes a corpus of facts to recall, then runs the whole pipeline on a small RoPE model that comes with the project.
    """
    from pipeline.demo.run import prepare_demo

    recipe, given = prepare_demo(overrides, pretrain=pretrain)
    if cluster is None:
        run_stages(recipe, given, ("data", "surgery", "recalibration", "export") if pretrain else ())
        return
    from pipeline.commands.cluster import submit_chain

    submit_chain(load(recipe, given), cluster, last="export" if pretrain else None)


COMMANDS = (
    *(run, plan, fetch, prepare_data),
    *(_stage_command(name, stage, text) for name, (stage, text) in _STAGE_COMMANDS.items()),
    *(evaluate, report, demo),
)
