"""A layout for one TP degree becomes the layout for another, without the checkpoint that it was made from."""

import logging
from pathlib import Path

from tqdm import tqdm

from model_surgery.architectures import Join, Rule
from model_surgery.errors import SurgeryError
from model_surgery.layout import Entry, Layout, read_joined
from model_surgery.layout_writer import LayoutWriter
from model_surgery.shape import ModelShape

log = logging.getLogger(__name__)


def reshard(source: Path, *, tensor_parallel: int, out_dir: Path) -> Layout:
    """Writes the layout in `source` to `out_dir`, cut for `tensor_parallel` ranks; holds one tensor at a time.

    The files are those that surgery would have written at that degree, byte for byte, so from TP a to b and back to a
    gives the first files again. Of a tensor that every rank holds whole, the first rank's copy is taken.

    Raises: SurgeryError if the layout is damaged or there are more ranks than query heads, DiskError if the disk is
    full.
    """
    layout = Layout.load(source)
    check_degree(layout.shape, tensor_parallel)
    if differing := [entry.target for entry in layout.tensors if not copies_agree(entry)]:
        log.warning("%s: ranks hold different copies of %s; the first rank's is taken", source, differing[0])
    with LayoutWriter(out_dir, layout.shape, tensor_parallel) as writer:
        for entry in tqdm(layout.tensors, desc="reshard", unit="tensor", disable=None):
            rule = Rule(entry.target, entry.sources, entry.join)
            writer.put(rule, read_joined(source, layout, entry))
        return writer.finish(
            position_embedding=layout.position_embedding,
            **layout.origin,
            trained_steps=layout.trained_steps,
            trained_tokens=layout.trained_tokens,
        )


def check_degree(shape: ModelShape, tensor_parallel: int) -> None:
    """Raises: SurgeryError if there are more ranks than query heads: some would hold nothing but padding."""
    if tensor_parallel > shape.heads:
        raise SurgeryError(
            f"--tensor-parallel {tensor_parallel}: the model has {shape.heads} query heads; use {shape.heads} or less"
        )


def copies_agree(entry: Entry) -> bool:
    """False if ranks hold unequal copies of a tensor that should be one."""
    return entry.join is not Join.REPLICATED or len({piece.sha256 for piece in entry.pieces}) == 1
