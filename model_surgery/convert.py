"""Surgery: a Hugging Face checkpoint with RoPE becomes a tensor-parallel layout without positional embeddings."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from model_surgery.architectures import Rule, rules
from model_surgery.calibration import Calibration, calibrate
from model_surgery.checkpoint import Checkpoint, fingerprint
from model_surgery.config import SurgeryConfig
from model_surgery.errors import SurgeryError
from model_surgery.files import read_json
from model_surgery.layout import Layout, remove_layout
from model_surgery.layout_writer import LayoutWriter
from model_surgery.partition import join
from model_surgery.qk_norm import initial_norms, with_qk_norm
from model_surgery.read_ahead import read_ahead
from model_surgery.shape import ModelShape, read_shape, source_position_embedding
from model_surgery.verification.tokens import verification_tokens
from model_surgery.verification.verify import Verification, verify

log = logging.getLogger(__name__)

_AHEAD_BYTES = 256 << 20
"""So much of the checkpoint is read and put together while what comes before it is cut and written."""


def check(config: SurgeryConfig, source: Path) -> ModelShape:
    """Everything that can be refused without writing: architecture, tensors, TP degree.

    Raises: SurgeryError.
    """
    shape = with_qk_norm(read_shape(source), config.qk_norm, str(source))
    shape.check_tensor_parallel(config.tensor_parallel, str(source))
    with Checkpoint(source):
        return shape


@dataclass(frozen=True)
class Surgery:
    """What the stage made and measured."""

    layout: Layout
    verification: Verification | None
    calibration: Calibration | None


def run(config: SurgeryConfig, *, source: Path, out_dir: Path, rows: Tensor | None = None) -> Surgery:
    """Converts and verifies. A layout that fails its verification is removed.

    `rows`: token ids [rows, length], where a norm is to be calibrated on them.

    Raises: SurgeryError on bad input, or if the layout does not compute what the source computes.
    """
    shape = check(config, source)
    if note := shape.padding(config.tensor_parallel):
        log.info("TP %d: %s", config.tensor_parallel, note)
    calibration = calibrate(source, read_shape(source), shape, _rows(rows)) if config.calibrates else None
    norms = calibration.norms if calibration else initial_norms(read_shape(source), shape)
    layout = convert(config, source=source, out_dir=out_dir, norms=norms)
    if config.verify == "off":
        log.warning("surgery.verify = off: the layout is not compared with its source")
        return Surgery(layout, None, calibration)
    try:
        tokens, text = verification_tokens(source, shape, config.verify_tokens)
        sample = config.verify == "sample"
        result = verify(source, out_dir, layout, tokens=tokens, text_tokens=text, sample=sample, norms=norms)
        if not result.ok:
            raise SurgeryError(f"{out_dir}: the layout does not compute what {source} computes: {result.describe()}")
    except BaseException:
        remove_layout(out_dir, layout)
        raise
    log.info("verified: %s", result.describe())
    return Surgery(layout, result, calibration)


def _rows(rows: Tensor | None) -> Tensor:
    if rows is None:
        raise SurgeryError("surgery.qk_norm_init = 'calibrated': needs training rows to measure on; none were given")
    return rows


def convert(config: SurgeryConfig, *, source: Path, out_dir: Path, norms: dict[str, Tensor] | None = None) -> Layout:
    """Cuts every tensor of the checkpoint into one slice per TP rank; layout.json is written last.

    `norms`: weights of the norms that are put in, by their Hugging Face names; default: ones.

    Raises: SurgeryError if a tensor holds NaN or infinity, DiskError if the disk is full; then nothing stays behind.
    """
    with Checkpoint(source) as checkpoint:
        shape = with_qk_norm(checkpoint.shape, config.qk_norm, str(source))
        inserted = initial_norms(checkpoint.shape, shape) if norms is None else norms
        plan = list(rules(shape))
        sizes = [sum(checkpoint.nbytes(name) for name in rule.sources if name not in inserted) for rule in plan]
        progress = tqdm(desc="surgery", total=sum(sizes), unit="B", unit_scale=True, disable=None)
        with progress, LayoutWriter(out_dir, shape, config.tensor_parallel) as writer:
            jobs = [
                (partial(_joined, rule, checkpoint, inserted, shape), size)
                for rule, size in zip(plan, sizes, strict=True)
            ]
            for rule, size, joined in zip(plan, sizes, read_ahead(jobs, _AHEAD_BYTES), strict=True):
                writer.put(rule, joined)
                progress.update(size)
            layout = writer.finish(
                position_embedding="none",
                source=str(source),
                source_fingerprint=fingerprint(source),
                source_position_embedding=source_position_embedding(read_json(source / "config.json")),
                inserted_norms=config.qk_norm_init if inserted else None,
            )
    log.info("%d tensors cut for TP %d", len(plan), config.tensor_parallel)
    return layout


def _joined(rule: Rule, checkpoint: Checkpoint, inserted: dict[str, Tensor], shape: ModelShape) -> Tensor:
    parts = tuple(inserted[name] if name in inserted else checkpoint.tensor(name) for name in rule.sources)
    return join(parts, rule.join, shape)
