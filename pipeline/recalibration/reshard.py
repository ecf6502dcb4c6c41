"""A training checkpoint, DeepSpeed's or portable, becomes a portable one for another TP degree, in one process."""

import logging
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from model_surgery.architectures import Join, Rule, rules
from model_surgery.errors import SurgeryError
from model_surgery.files import write_json, write_text
from model_surgery.layout import read_joined
from model_surgery.layout_writer import LayoutWriter
from model_surgery.partition import unsplit
from model_surgery.reshard import check_degree
from pipeline.errors import RecipeError
from pipeline.recalibration import checkpoints
from pipeline.recalibration.metrics import METRICS_FILE, keep_steps
from pipeline.recalibration.portable import open_part
from pipeline.recalibration.state import PARTS, STATE_FILE, DeepSpeedState, PortableState, State, read_state
from pipeline.recalibration.zero_checkpoint import ZeroCheckpoint

log = logging.getLogger(__name__)


class Source(Protocol):
    """A checkpoint that can be written as a portable one."""

    state: State
    updates: int
    metrics: Path

    def joined(self, part: str, rule: Rule) -> Tensor:
        """A whole tensor, fp32, of the master weights or a moment, as `partition.join` puts it together."""
        ...


class DeepSpeedSource:
    """A checkpoint in the files of DeepSpeed."""

    def __init__(self, folder: Path, state: DeepSpeedState) -> None:
        self.folder, self.state = folder, state
        self._zero = ZeroCheckpoint(folder, state)
        self.updates = self._zero.updates
        self.metrics = folder.resolve().parent.parent / METRICS_FILE

    def joined(self, part: str, rule: Rule) -> Tensor:
        slices = self._zero.slices(part, rule.target)
        if rule.join is Join.REPLICATED and any(not torch.equal(slices[0], other) for other in slices):
            log.warning("%s: TP ranks hold different %s of %s; the first's are taken", self.folder, part, rule.target)
        try:
            return unsplit(slices, rule.join, self.state.shape)
        except SurgeryError as error:
            raise SurgeryError(f"{self.folder}: {part} of {rule.target}: {error}") from error


class PortableSource:
    """A portable checkpoint."""

    def __init__(self, folder: Path, state: PortableState) -> None:
        self.folder, self.state, self.updates = folder, state, state.updates
        self.metrics = folder / METRICS_FILE
        self._layouts = {part: open_part(folder, state, part) for part in PARTS}
        self._entries = {part: {e.target: e for e in layout.tensors} for part, layout in self._layouts.items()}

    def joined(self, part: str, rule: Rule) -> Tensor:
        return read_joined(self.folder / part, self._layouts[part], self._entries[part][rule.target])


def open_source(folder: Path) -> Source:
    """The training checkpoint in `folder`.

    Raises: RecipeError if it is incomplete or damaged, or does not say what it is of.
    """
    if not checkpoints.is_complete(folder):
        whole = ", ".join(path.name for path in checkpoints.complete(folder.parent))
        raise RecipeError(f"{folder}: not complete, its save was cut off; complete here: {whole or 'none'}")
    state = read_state(folder)
    if state is None:
        raise RecipeError(f"{folder}: has no {STATE_FILE}, so what model it is of is not known; train to a newer one")
    return PortableSource(folder, state) if isinstance(state, PortableState) else DeepSpeedSource(folder, state)


def write_portable(source: Source, out_dir: Path, *, tensor_parallel: int) -> PortableState:
    """Writes a portable checkpoint for `tensor_parallel` ranks, one tensor at a time; the marker comes last.

    It holds nothing but the source's state, so from TP a to b and back to a gives the first files again.

    Raises: RecipeError or SurgeryError if the source is damaged, there are more ranks than query heads, or the disk is
    full.
    """
    state = source.state
    check_degree(state.shape, tensor_parallel)
    digests = {part: _write_part(source, part, out_dir / part, tensor_parallel) for part in PARTS}
    if source.metrics.is_file():
        write_text(out_dir / METRICS_FILE, source.metrics.read_text(encoding="utf-8"))
        keep_steps(out_dir / METRICS_FILE, state.step)
    described = state.model_dump(exclude={"format", "data_parallel", "zero_stage", "updates", "digests"})
    described["tensor_parallel"] = tensor_parallel
    written = PortableState(**described, updates=source.updates, digests=digests)
    write_json(out_dir / STATE_FILE, written.model_dump(mode="json"))
    checkpoints.mark_complete(out_dir)
    return written


def _write_part(source: Source, part: str, folder: Path, tensor_parallel: int) -> str:
    """Writes one of the layouts; returns its digest."""
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
