"""A training checkpoint, DeepSpeed's or portable, becomes a portable one for another TP degree, in one process."""

from pathlib import Path

from tqdm import tqdm

from foundation.files import write_json, write_text
from model_surgery.architectures import rules
from model_surgery.layout_writer import LayoutWriter
from model_surgery.reshard import check_degree
from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.checkpoints.fp8 import write_scales
from pipeline.recalibration.checkpoints.sources import Source
from pipeline.recalibration.checkpoints.state import PARTS, STATE_FILE, PortableState
from pipeline.recalibration.metrics.files import METRICS_FILE, keep_steps


def write_portable(source: Source, out_dir: Path, *, tensor_parallel: int) -> PortableState:
    """Writes a portable checkpoint for `tensor_parallel` ranks, one tensor at a time; the marker comes last.

    It holds nothing but the source's state, so from TP a to b and back to a gives the first files again.

    Raises: RecipeError or SurgeryError if the source is damaged or there are more ranks than query heads; DiskError if
    the disk is full.
    """
    state = source.state
    check_degree(state.shape, tensor_parallel)
    digests = {part: write_part(source, part, out_dir / part, tensor_parallel) for part in PARTS}
    digests |= write_scales(source.scales, out_dir)
    if source.metrics.is_file():
        write_text(out_dir / METRICS_FILE, source.metrics.read_text(encoding="utf-8"))
        keep_steps(out_dir / METRICS_FILE, state.step)
    described = state.model_dump(include=set(PortableState.model_fields) - {"format", "updates", "digests"})
    described["tensor_parallel"] = tensor_parallel
    written = PortableState(**described, updates=source.updates, digests=digests)
    write_json(out_dir / STATE_FILE, written.model_dump(mode="json"))
    folders.mark_complete(out_dir)
    return written


def write_part(source: Source, part: str, folder: Path, tensor_parallel: int) -> str:
    """Writes the master weights or a moment as a layout; returns its digest."""
    state = source.state
    with LayoutWriter(folder, state.shape, tensor_parallel) as writer:
        for rule in tqdm(list(rules(state.shape)), desc=part, unit="tensor", disable=None):
            writer.put(rule, source.joined(part, rule))
        layout = writer.finish(
            position_embedding=state.position_embedding,
            **state.origin,
            trained_steps=state.step,
            trained_tokens=state.tokens,
        )
    return layout.digest()
