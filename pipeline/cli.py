"""The `drope` command. Heavy imports happen inside the commands, so that --help answers at once."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from pipeline.commands import cluster

_STAGE_COMMANDS = {
    "surgery": ("surgery", "Drop the positional embeddings and cut the checkpoint for tensor parallelism."),
    "recalibrate": ("recalibration", "Train without positional embeddings at the original context length."),
    "control": ("control", "Train the same model with RoPE kept on the same rows (recalibration.control: true)."),
    "export": ("export", "Write the trained weights as a Hugging Face folder."),
}
_OVERRIDES_HELP = "KEY=VALUE sets a field of the recipe by its dotted path: recalibration.lr=1e-4"


class CleanErrors(click.Group):
    """Bad input ends as one line and exit code 2; a failed stage as one line and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, RuntimeError) as error:
            from pipeline.errors import exit_code

            if (code := exit_code(error)) is None:
                raise
            click.echo(f"drope: {error}", err=True)
            sys.exit(code)


@click.group(cls=CleanErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="drope", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Also log what the stages do in detail.")
def main(verbose: bool) -> None:
    """DroPE: give a pretrained RoPE model a longer context by removing its positional embeddings.

    A recipe (one YAML file, see recipes/) says everything about a run. Start with

    \b
        drope doctor                       what of the stack works on this machine
        drope plan RECIPE                  what would run, and whether it can
        drope fetch RECIPE                 what it needs from the Hugging Face Hub, into the cache of this machine
        drope run RECIPE                   data, surgery, recalibration, export, evaluation, report

    Exit codes: 0 done, 2 bad input (one line says what and the way out), 1 a stage failed, 75 stopped by SIGUSR1,
    SIGTERM or Ctrl-C with a checkpoint: the same command goes on.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("pipeline", "data_prep", "model_surgery", "eval", "slurm"):
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the RECIPE argument and the overrides after it."""
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.argument("recipe", type=click.Path(path_type=Path))(command)


def _load(recipe: Path, overrides: tuple[str, ...]) -> Any:
    from pipeline.recipe import load_recipe

    return load_recipe(recipe, overrides)


def _run(recipe: Path, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    from pipeline.run_local import run

    loaded = _load(recipe, overrides)
    run(loaded, only)
    page = loaded.folder / "report" / "report.html"
    if page.is_file() and (not only or "report" in only):
        click.echo(f"report: {page.resolve()}")


@main.command(epilog=_OVERRIDES_HELP)
@takes_recipe
@click.option("--stage", "only", multiple=True, metavar="STAGE", help="Only this stage; may be given several times.")
def run(recipe: Path, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Run a recipe's stages on this machine.

    Stages that are complete with these settings are skipped; a stage that was cut off goes on. A stage that is there
    with other settings is refused with the difference named, never redone over.
    """
    _run(recipe, overrides, only)


@main.command(epilog=_OVERRIDES_HELP)
@takes_recipe
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what would run: steps, tokens, memory per GPU, GPU-hours, disk; nothing is written."""
    from pipeline.plan import make_plan

    made = make_plan(_load(recipe, overrides))
    click.echo(json.dumps(made.as_dict(), indent=2) if as_json else made.as_text())


@main.command(epilog=_OVERRIDES_HELP)
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
    from pipeline import fetch as fetching

    loaded = _load(recipe, overrides)
    if not listed and not as_json:
        click.echo(fetching.summary(fetching.fetch(loaded)))
        return
    states = fetching.listing(loaded)
    if as_json:
        click.echo(json.dumps([state.as_dict() for state in states], indent=2))
        return
    click.echo("\n".join(state.as_text() for state in states))
    there = sum(state.lack is None for state in states)
    rest = "" if there == len(states) else "; drope fetch brings what the Hub has"
    click.echo(f"{there} of {len(states)} are there{rest}")


@main.command("prepare-data", epilog=_OVERRIDES_HELP)
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
        _run(recipe, given, ("data",))
        return
    from pipeline import data_tasks

    loaded = _load(recipe, given)
    if task is not None and of is not None:
        data_tasks.run_task(loaded, task, of)
    else:
        data_tasks.check_merge(loaded)
        _run(recipe, given, ("data",))


def checked_task(task: int | None, of: int | None, merge: bool) -> None:
    """Raises: click.UsageError for options of tasks that do not go together."""
    if (task is None) != (of is None) or (merge and task is not None):
        raise click.UsageError("--task I and --of N go together, and without --merge")
    if task is not None and of is not None and task >= of:
        raise click.UsageError(f"--task {task} --of {of}: tasks are counted from 0 to {of - 1}")


def _stage_command(name: str, stage: str, text: str) -> None:
    @takes_recipe
    def command(recipe: Path, overrides: tuple[str, ...], dtype: str | None = None, step: str | None = None) -> None:
        given = (*overrides, *([f"export.dtype={dtype}"] if dtype else []))
        if step is None:
            _run(recipe, given, (stage,))
            return
        from pipeline.snapshot import export_step

        click.echo(f"model: {export_step(_load(recipe, given), step).resolve()}")

    if stage == "export":
        names = click.Choice(["float32", "bfloat16", "float16", "source"])
        command = click.option("--dtype", type=names, help="Of the written weights: export.dtype.")(command)
        text += (
            " With --step it writes a checkpoint of a training that may still be under way to snapshots/ instead:"
            " the number of its step, newest, or best by validation."
        )
        command = click.option("--step", metavar="STEP", help="A step that has a checkpoint, newest or best.")(command)
    text += " One stage of RECIPE; the stages before it must be complete."
    main.command(name, help=text, epilog=_OVERRIDES_HELP)(command)


for _name, (_stage, _text) in _STAGE_COMMANDS.items():
    _stage_command(_name, _stage, _text)


@main.command(epilog=_OVERRIDES_HELP)
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
        _run(recipe, overrides, ("evaluation",))
        return
    from pipeline import evaluation_tasks

    loaded = _load(recipe, overrides)
    if task is not None and of is not None:
        evaluation_tasks.run_task(loaded, task, of)
    else:
        evaluation_tasks.check_merge(loaded)
        _run(recipe, overrides, ("evaluation",))


@main.command(epilog=_OVERRIDES_HELP)
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
        _run(Path(given[0]), given[1:], ("report",))
        return
    from pipeline.report.compare import write_comparison

    page = write_comparison([Path(folder) for folder in given], out or Path("compare.html"))
    click.echo(f"comparison: {page.resolve()}")


@main.command(epilog=_OVERRIDES_HELP)
@takes_recipe
@click.option("--length", type=click.IntRange(min=2), metavar="T", help="Tokens of a sequence; default: 128 at most.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of untrained weights and noise."
)
def probe(recipe: Path, overrides: tuple[str, ...], length: int | None, seed: int) -> None:
    """Measure what positions do to attention, before training and after (the paper's theory, section 3).

    Positional bias of every layer's attention, prefix spread of its states, and the gradients of queries and keys: for
    the recipe's model untrained with RoPE and without, trained, with RoPE removed, and for the run's export where
    there is one; on a constant sequence, on one with more and more noise, and on the run's held-out text. Writes
    probes.svg, probes.csv and probes.json to probes/ in the run's folder.
    """
    from pipeline import probe as probing

    loaded = _load(recipe, overrides)
    click.echo(probing.summary(probing.probe(loaded, length=length, seed=seed)))
    click.echo(f"plot: {(loaded.folder / 'probes' / 'probes.svg').resolve()}")


@main.command("tune-scale", epilog=_OVERRIDES_HELP)
@takes_recipe
@click.option(
    "--factor",
    "factors",
    type=click.FloatRange(min=1),
    multiple=True,
    metavar="S",
    help="Also write the model with its scale for S times the context; may be given several times.",
)
@click.option(
    "--apply",
    type=click.Choice(["weights", "config"]),
    default="weights",
    show_default=True,
    help="Where such a model has its scale: multiplied into weights, or said in config.json.",
)
@click.option("--per-head", is_flag=True, help="Also train a scale for every query head of every layer.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Of --per-head.")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=16_384,
    show_default=True,
    metavar="N",
    help="Held-out text to tune on.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="Needles to tune on."
)
def tune_scale(
    recipe: Path,
    overrides: tuple[str, ...],
    factors: tuple[float, ...],
    apply: Literal["weights", "config"],
    per_head: bool,
    steps: int,
    tokens: int,
    samples: int,
) -> None:
    """Find the softmax scale beta that the exported model wants beyond its context. Needs stages data and export.

    At every length of evaluation.lengths above 1x the beta of least loss is searched, a factor of the attention
    logits, and c of beta = 1 + c ln s is fitted to them, s being length over training length. The loss is that of
    needle answers of another seed where the recipe has evaluation.recall, else of held-out text after what the
    evaluation scores. The summary ends with the recipe's lines that use it.

    \b
        drope tune-scale RECIPE                           c, and what it gains at every length
        drope tune-scale RECIPE --factor 8                and a model for 8 times the context
        drope tune-scale RECIPE --factor 8 --per-head     and one with a scale for each head

    Writes scale.json, scale.csv, scale.svg (heads.json) and the models to softmax-scale/ in the run's folder; a model
    that is there for the same S is replaced. Scales for heads (arXiv:2404.12224) are trained at the largest S, or the
    longest length evaluated, on held-out text, from the tuned beta on and with all weights frozen, and always
    multiplied into weights.
    """
    from pipeline import tune_scale as tuning

    loaded = _load(recipe, overrides)
    options = {"steps": steps, "tokens": tokens, "samples": samples}
    tuned = tuning.tune_scale(loaded, factors=factors, apply=apply, per_head=per_head, **options)
    click.echo(tuning.summary(tuned))
    for folder in tuned.models:
        click.echo(f"model: {folder.resolve()}")
    click.echo(f"plot: {(loaded.folder / tuning.FOLDER / 'scale.svg').resolve()}")


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Also compare every byte with the recorded digests.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def inspect(path: Path, verify: bool, as_json: bool) -> None:
    """Say what PATH is: shards, layout, checkpoint, stage or run, with its facts."""
    from pipeline.inspect import inspect_path

    facts = inspect_path(path, verify=verify)
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(map(_fact, facts, facts.values())))


def _fact(name: str, value: Any) -> str:
    """A fact as a line; one that is a list as lines below its name."""
    return "\n    ".join([name, *value]) if isinstance(value, list) else f"{name:<24} {value}"


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--tensor-parallel", type=click.IntRange(min=1), required=True, metavar="N", help="Ranks to cut it for.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="A new or empty folder.")
def reshard(path: Path, tensor_parallel: int, out: Path) -> None:
    """Cut a layout, or a training checkpoint, for another number of tensor-parallel ranks.

    PATH is a layout (a run's surgery or recalibration/layout folder) or a checkpoint of a training
    (recalibration/checkpoints/step-XXXXXXXX). Every tensor is put together from its slices and cut anew, one at a
    time, on this machine, with no GPU; from N to M ranks and back gives the same bytes.

    The new checkpoint holds the weights and the optimizer's state in fp32, with digests and no pickle, for any ranks. A
    run needs none of this to go on with other ranks: change surgery.tensor_parallel or recalibration.data_parallel.
    """
    from pipeline.reshard import reshard as write

    click.echo(write(path, tensor_parallel=tensor_parallel, out_dir=out))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what of the stack works on this machine: compiler, GPU, Transformer Engine, NCCL, SLURM."""
    from pipeline.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        click.echo("\n".join(str(finding) for finding in findings))
    if any(finding.state == "broken" for finding in findings):
        sys.exit(1)


@main.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--pretrain", is_flag=True, help="Instead reproduce the RoPE checkpoint that the demo starts from.")
def demo(overrides: tuple[str, ...], pretrain: bool) -> None:
    """The paper's experiment in miniature, on two CPU cores in minutes.

    Writes a corpus of facts to recall, then runs the whole pipeline on a small RoPE model that comes with the project.
    """
    from pipeline.demo.run import prepare_demo

    recipe, given = prepare_demo(overrides, pretrain=pretrain)
    _run(recipe, given, ("data", "surgery", "recalibration", "export") if pretrain else ())


for _command in cluster.COMMANDS:
    main.add_command(_command)

if __name__ == "__main__":
    main()
