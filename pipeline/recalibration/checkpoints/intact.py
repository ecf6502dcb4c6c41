"""Whether a checkpoint's bytes are those that were written."""

from pathlib import Path

from model_surgery.errors import SurgeryError
from model_surgery.files import file_digest
from model_surgery.layout import Layout, damaged_tensors
from pipeline.errors import RecipeError
from pipeline.launch.patience import SECONDS, machines, seen
from pipeline.recalibration.checkpoints.fp8 import read_scales
from pipeline.recalibration.checkpoints.portable import open_part
from pipeline.recalibration.checkpoints.state import PARTS, STATE_FILE, DeepSpeedState, PortableState, read_state
from pipeline.recalibration.checkpoints.zero_files import check_bytes


def damage(checkpoint: Path, *, share: int = 0, of: int = 1) -> str | None:
    """What is wrong with a checkpoint, as a line; None if all is as it was written.

    Reads every byte of every `of`-th file, beginning with number `share`: as many processes share the work.
    """
    try:
        state = read_state(checkpoint)
        if state is None:
            return f"has no {STATE_FILE}"
        if isinstance(state, PortableState):
            read_scales(checkpoint, state.digests)
            return _damage_of_parts(checkpoint, state, PARTS[share::of])
        return _damage_of_files(checkpoint, state, share, of)
    except (RecipeError, SurgeryError, OSError) as error:
        return str(error)


def _damage_of_files(checkpoint: Path, state: DeepSpeedState, share: int, of: int) -> str | None:
    if not state.files:  # of an earlier version: nothing but the checksums that torch.save writes
        for path in sorted(checkpoint.glob("*.pt"))[share::of]:
            check_bytes(path)
        return None
    seconds = SECONDS if machines() > 1 else 0.0  # each machine of the training writes files of its own
    for name in sorted(state.files)[share::of]:
        path, written = checkpoint / name, state.files[name]
        if not seen(path, seconds):
            return f"{name} is missing"
        if path.stat().st_size != written.bytes:
            return f"{name} has {path.stat().st_size:,} bytes, {written.bytes:,} were written"
        if file_digest(path) != written.sha256:
            return f"the bytes of {name} are not those written"
    return None


def _damage_of_parts(checkpoint: Path, state: PortableState, parts: tuple[str, ...]) -> str | None:
    for part in parts:
        layout: Layout = open_part(checkpoint, state, part)
        if damaged := damaged_tensors(checkpoint / part, layout):
            return f"{part}: the bytes of {damaged[0]} are not those written"
    return None
