"""The `drope` command. Heavy imports happen inside the commands, so that --help answers at once."""

import logging
import sys
from typing import Any

import click

from pipeline.commands import cluster, stages, tools


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
@click.version_option(package_name="drope-recalibration", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Also log what the stages do in detail.")
def main(verbose: bool) -> None:
    """DroPE: give a pretrained RoPE model a longer context by removing its positional embeddings.

    A recipe (one YAML file, see recipes/) says everything about a run. Start with

    \b
        drope doctor                       what of the stack works on this machine
        drope plan RECIPE                  what would run, and whether it can
        drope fetch RECIPE                 what it needs from the Hugging Face Hub, into the cache of this machine
        drope run RECIPE                   data, surgery, recalibration, export, evaluation, report
        drope submit RECIPE --cluster C    the same on a SLURM cluster

    Exit codes: 0 done, 2 bad input (one line says what and the way out), 1 a stage failed, 75 stopped by SIGUSR1,
    SIGTERM or Ctrl-C with a checkpoint: the same command goes on.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("pipeline", "data_prep", "model_surgery", "eval", "slurm"):
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)


for _command in (*stages.COMMANDS, *cluster.COMMANDS, *tools.COMMANDS):
    main.add_command(_command)

if __name__ == "__main__":
    main()
