"""What a training takes over from a checkpoint that another one made: the metrics so far, and a record of it."""

import json
from pathlib import Path

from foundation.files import write_text
from pipeline.recalibration.checkpoints.state import STATE_FILE, PortableState, read_state
from pipeline.recalibration.metrics.files import METRICS_FILE, VALIDATION_FILE, keep_steps

CONTINUED_FILE = "continued_from.json"
"""In a training's folder: state.json of the checkpoint of another training that this one went on from."""


def adopt_history(checkpoint: Path, out_dir: Path) -> None:
    """Gives a training the metrics and validations of a checkpoint that is not its own, and a record of it.

    A portable checkpoint brings its metrics along; those of a run lie two folders above its checkpoints.
    """
    state = read_state(checkpoint)
    portable = isinstance(state, PortableState)
    folder = checkpoint if portable else checkpoint.resolve().parent.parent
    for name in (METRICS_FILE, VALIDATION_FILE):
        # Lines that are there are of an attempt at this same step, or of a training that this one does not go on with.
        (out_dir / name).unlink(missing_ok=True)
        if (folder / name).is_file() and state is not None:
            write_text(out_dir / name, (folder / name).read_text(encoding="utf-8"))
            keep_steps(out_dir / name, state.step)
    write_text(out_dir / CONTINUED_FILE, (checkpoint / STATE_FILE).read_text(encoding="utf-8"))


def forget_history(out_dir: Path) -> None:
    """For a training that begins anew in a folder where one had gone on from another's checkpoint."""
    (out_dir / CONTINUED_FILE).unlink(missing_ok=True)


def continued_from(out_dir: Path) -> dict[str, dict[str, object]]:
    """The fact, for the manifest of a training, that it went on from another's checkpoint; empty if it did not."""
    if not (out_dir / CONTINUED_FILE).is_file():
        return {}
    state = json.loads((out_dir / CONTINUED_FILE).read_text(encoding="utf-8"))
    digests = {name: file["sha256"] for name, file in state.get("files", {}).items()} or state.get("digests", {})
    return {"continued_from": {"step": state["step"], "source": state["source"], "digests": digests}}
