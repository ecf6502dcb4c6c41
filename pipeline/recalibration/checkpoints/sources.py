"""Training checkpoints of either format read tensor by tensor, whatever ranks wrote them and whatever ranks read."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from model_surgery.architectures import Join, Rule, rules, source_shapes
from model_surgery.errors import SurgeryError
from model_surgery.layout import Layout, read_joined
from model_surgery.partition import split, unsplit
from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError
from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.checkpoints.fp8 import read_scales
from pipeline.recalibration.checkpoints.portable import open_part
from pipeline.recalibration.checkpoints.state import (
    PARTS,
    STATE_FILE,
    WEIGHTS,
    DeepSpeedState,
    PortableState,
    State,
    read_state,
)
from pipeline.recalibration.checkpoints.zero_files import ZeroCheckpoint
from pipeline.recalibration.metrics.files import METRICS_FILE

log = logging.getLogger(__name__)


class Weights(Protocol):
    """Whole tensors of a model, one at a time."""

    shape: ModelShape

    def joined(self, part: str, rule: Rule) -> Tensor:
        """A whole tensor, as `partition.join` puts it together."""
        ...


class Source(Weights, Protocol):
    """A checkpoint: its fp32 master weights, and both moments of Adam."""

    @property
    def state(self) -> State:
        """What the checkpoint says of itself."""
        ...

    updates: int
    metrics: Path
    scales: dict[str, Tensor]
    """Of FP8; empty where there are none."""


class LayoutWeights:
    """The weights of a layout, whatever its TP degree."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._layout = folder, Layout.load(folder)
        self.shape = self._layout.shape
        self._entries = {entry.target: entry for entry in self._layout.tensors}

    def joined(self, part: str, rule: Rule) -> Tensor:
        return read_joined(self._folder, self._layout, self._entries[rule.target])


class DeepSpeedSource:
    """A checkpoint in the files of DeepSpeed."""

    def __init__(self, folder: Path, state: DeepSpeedState, *, check: bool) -> None:
        self.folder, self.state, self.shape = folder, state, state.shape
        self._zero = ZeroCheckpoint(folder, state, check=check)
        self.updates, self.scales = self._zero.updates, self._zero.scales
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
        self.folder, self.state, self.shape, self.updates = folder, state, state.shape, state.updates
        self.metrics, self.scales = folder / METRICS_FILE, read_scales(folder, state.digests)
        self._layouts = {part: open_part(folder, state, part) for part in PARTS}
        self._entries = {part: {e.target: e for e in layout.tensors} for part, layout in self._layouts.items()}

    def joined(self, part: str, rule: Rule) -> Tensor:
        return read_joined(self.folder / part, self._layouts[part], self._entries[part][rule.target])


def open_source(folder: Path, *, check: bool = True) -> Source:
    """The training checkpoint in `folder`; `check`: whether DeepSpeed's files are first compared with their checksums.

    Raises: RecipeError if it is incomplete or damaged, or does not say what it is of.
    """
    if not folders.is_complete(folder):
        whole = ", ".join(path.name for path in folders.complete(folder.parent))
        raise RecipeError(f"{folder}: not complete, its save was cut off; complete here: {whole or 'none'}")
    state = read_state(folder)
    if state is None:
        raise RecipeError(f"{folder}: has no {STATE_FILE}, so what model it is of is not known; train to a newer one")
    if isinstance(state, PortableState):
        return PortableSource(folder, state)
    return DeepSpeedSource(folder, state, check=check)


def slices(
    source: Weights, part: str, shape: ModelShape, *, tensor_parallel: int, rank: int
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of one TP rank, by its Megatron name, for a model of `shape`.

    `shape` may have norms of queries and keys that the source has not: they begin with ones, their moments with zeros.
    """
    stored = {rule.target for rule in rules(source.shape)}
    sizes = source_shapes(shape)
    for rule in rules(shape):
        if rule.target in stored:
            whole = source.joined(part, rule)
        else:
            whole = torch.full(sizes[rule.sources[0]], 1.0 if part == WEIGHTS else 0.0)
        yield rule.target, split(whole, rule.join, shape, tensor_parallel)[rank]
