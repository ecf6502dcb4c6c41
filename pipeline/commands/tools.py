"""Commands that look at models, runs and this machine, and tune what is exported."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import click

from pipeline.commands.arguments import OVERRIDES_HELP, load, takes_recipe


@click.command(epilog=OVERRIDES_HELP)
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
    from pipeline.tools import probe as probing

    loaded = load(recipe, overrides)
    click.echo(probing.summary(probing.probe(loaded, length=length, seed=seed)))
    click.echo(f"plot: {(loaded.folder / 'probes' / 'probes.svg').resolve()}")


@click.command("tune-scale", epilog=OVERRIDES_HELP)
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

    At every length of evaluation.context_factors above 1x the beta of least loss is searched, a factor of the attention
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
    from pipeline.tools import tune_scale as tuning

    loaded = load(recipe, overrides)
    tuned = tuning.tune_scale(
        loaded, factors=factors, apply=apply, per_head=per_head, steps=steps, tokens=tokens, samples=samples
    )
    click.echo(tuning.summary(tuned))
    for folder in tuned.models:
        click.echo(f"model: {folder.resolve()}")
    click.echo(f"plot: {(loaded.folder / tuning.FOLDER / 'scale.svg').resolve()}")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Also compare every byte with the recorded digests.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def inspect(path: Path, verify: bool, as_json: bool) -> None:
    """Say what PATH is: shards, layout, checkpoint, stage or run, with its facts."""
    from pipeline.tools.inspect import inspect_path

    facts = inspect_path(path, verify=verify)
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(map(_fact, facts, facts.values())))


def _fact(name: str, value: Any) -> str:
    """A fact as a line; one that is a list as lines below its name."""
    return "\n    ".join([name, *value]) if isinstance(value, list) else f"{name:<24} {value}"


@click.command()
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
    from pipeline.tools.reshard import reshard as write

    click.echo(write(path, tensor_parallel=tensor_parallel, out_dir=out))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what of the stack works on this machine: compiler, GPU, Transformer Engine, NCCL, SLURM."""
    from pipeline.tools.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        click.echo("\n".join(str(finding) for finding in findings))
    if any(finding.state == "broken" for finding in findings):
        sys.exit(1)


COMMANDS = (probe, tune_scale, inspect, reshard, doctor)
