"""Portable training checkpoints: three layouts (master weights and Adam's two moments) and state.json.

In the layout format every tensor has its digest, nothing is pickled, and the code that cuts the weights cuts Adam's
moments. Any number of data-parallel ranks at any ZeRO stage can go on with one that is cut for their TP degree.

    step-XXXXXXXX/weights/  exp_avg/  exp_avg_sq/    layouts, fp32
    step-XXXXXXXX/metrics.jsonl                      the steps so far
    step-XXXXXXXX/state.json                         step, tokens, updates, the layouts' digests
    step-XXXXXXXX/complete                           written last
"""

from pathlib import Path

from model_surgery.files import write_text
from model_surgery.layout import Layout
from pipeline.errors import RecipeError
from pipeline.recalibration.metrics import METRICS_FILE
from pipeline.recalibration.state import STATE_FILE, WEIGHTS, PortableState, read_state

CONTINUED_FILE = "continued_from.json"
"""In a training folder: state.json of the portable checkpoint that the training went on from."""


def open_part(folder: Path, state: PortableState, part: str) -> Layout:
    """One of a portable checkpoint's layouts.

    Raises: SurgeryError if it is missing, RecipeError if it is not the one that state.json has the digest of.
    """
    layout = Layout.load(folder / part)
    if layout.digest() != state.digests[part]:
        raise RecipeError(
            f"{folder / part}: not the layout that {STATE_FILE} has the digest of; use another checkpoint"
        )
    return layout


def starting_layout(checkpoint: Path | None, layout: Path) -> Path:
    """Where a training takes its first weights from: a portable checkpoint's, else those that surgery made.

    DeepSpeed's own checkpoints bring the weights when they are loaded.
    """
    portable = checkpoint is not None and isinstance(read_state(checkpoint), PortableState)
    return checkpoint / WEIGHTS if portable else layout


def adopt_history(folder: Path, out_dir: Path) -> None:
    """Gives a training the metrics of the portable checkpoint that it goes on from, and a record of it."""
    metrics = folder / METRICS_FILE
    # Lines that are there are of an attempt at this same step, or of a training that this one does not go on with.
    (out_dir / METRICS_FILE).unlink(missing_ok=True)
    if metrics.is_file():
        write_text(out_dir / METRICS_FILE, metrics.read_text(encoding="utf-8"))
    write_text(out_dir / CONTINUED_FILE, (folder / STATE_FILE).read_text(encoding="utf-8"))


def forget_history(out_dir: Path) -> None:
    """For a training that begins anew in a folder where one had gone on from a portable checkpoint."""
    (out_dir / CONTINUED_FILE).unlink(missing_ok=True)


def continued_from(out_dir: Path) -> dict[str, dict[str, object]]:
    """The fact, for the manifest of a training, that it went on from a portable checkpoint; empty if it did not."""
    path = out_dir / CONTINUED_FILE
    if not path.is_file():
        return {}
    state = PortableState.model_validate_json(path.read_bytes())
    return {"continued_from": {"step": state.step, "digests": state.digests}}
