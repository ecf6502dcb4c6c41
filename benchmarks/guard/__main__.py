"""Train a real small model at a learning rate that is too high: with QK-norm and without, the guard on and off.

Four runs of benchmarks/guard/recipe.yaml, one after the other, by the stages that `drope run` has; those that are
complete in --folder are not done again. Then the plot, and a table on standard output.

Exit status: 0; 2 if a run fails for another reason than the guard's giving up.
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.guard.plot import Run, draw
from foundation.files import write_text
from pipeline.errors import BAD_INPUT, StageFailed
from pipeline.recalibration.metrics import read_events, read_metrics
from pipeline.recipe.recipe import load_recipe
from pipeline.stages.run import run as run_stages

RECIPE = Path(__file__).parent / "recipe.yaml"
STAGES = ("data", "surgery", "recalibration")


def main() -> int:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        runs = list(train_all(arguments.folder, tuple(arguments.overrides)))
    except BAD_INPUT as error:
        print(error, file=sys.stderr)
        return 2
    write_text(arguments.image, draw(runs))
    print(table(runs))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks/guard"), help="where the runs are made")
    parser.add_argument("--image", type=Path, default=Path("docs/images/guard.svg"), help="where the plot is written")
    parser.add_argument("overrides", nargs="*", help="settings of the recipe, such as recalibration.lr=0.1")
    return parser.parse_args()


def train_all(folder: Path, overrides: tuple[str, ...]) -> Iterator[Run]:
    """The four runs; one that the guard ends is a run like the others."""
    for qk_norm in ("none", "full"):
        for guarded in (False, True):
            own = (
                f"name={qk_norm}-{'on' if guarded else 'off'}",
                f"runs_dir={folder}",
                f"surgery.qk_norm={qk_norm}",
                f"recalibration.guard.enabled={str(guarded).lower()}",
            )
            recipe = load_recipe(RECIPE, (*overrides, *own))
            try:
                run_stages(recipe, STAGES)
            except StageFailed as error:
                logging.warning("%s: %s", recipe.name, error)
            out = recipe.folder / "recalibration"
            yield Run(qk_norm, guarded, read_metrics(out), read_events(out))


def table(runs: list[Run]) -> str:
    """What became of every run, in Markdown; losses are means of 20 steps, skips are also those gone back on."""
    titles = ("QK-norm", "guard", "lowest loss", "loss at the end", "skipped", "gone back", "lr at the end")
    rows = []
    for run in runs:
        cells = (
            *(run.qk_norm, "on" if run.guarded else "off", f"{run.lowest:.2f}", f"{run.last:.2f}"),
            *(len(run.events_of("skip")), len(run.events_of("rollback")), f"{run.lines[-1]['lr']:g}"),
        )
        rows.append(cells)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (titles, ["---"] * len(titles), *rows))


if __name__ == "__main__":
    sys.exit(main())
