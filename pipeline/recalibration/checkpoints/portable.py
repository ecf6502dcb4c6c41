"""Portable training checkpoints: three layouts (master weights and Adam's two moments) and state.json.

In the layout format every tensor has its digest, nothing is pickled, and the code that cuts the weights cuts Adam's
moments.

    step-XXXXXXXX/weights/  exp_avg/  exp_avg_sq/    layouts, fp32
    step-XXXXXXXX/fp8.safetensors                    scales of FP8, where the training used it
    step-XXXXXXXX/metrics.jsonl                      the steps so far
    step-XXXXXXXX/state.json                         step, tokens, updates, the layouts' digests
    step-XXXXXXXX/complete                           written last
"""

from pathlib import Path

from model_surgery.layout import Layout
from pipeline.errors import RecipeError
from pipeline.recalibration.checkpoints.state import STATE_FILE, PortableState


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
