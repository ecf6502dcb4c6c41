"""The safetensors files of an exported model."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from foundation.files import atomic_path, write_json
from model_surgery.architectures import Join
from model_surgery.errors import SurgeryError
from model_surgery.export.formats import HubFormat
from model_surgery.head_scales import HeadScales, fold_heads
from model_surgery.layout import Entry, Layout, read_sources
from model_surgery.softmax_scale import fold

_SHARD_BYTES = 4 << 30


def write_weights(
    layout_dir: Path,
    layout: Layout,
    form: HubFormat,
    out_dir: Path,
    dtype: torch.dtype,
    softmax_scale: float = 1.0,
    head_scales: HeadScales | None = None,
) -> None:
    """model-*.safetensors with their index; one layout tensor in memory at a time, plus the shard being filled.

    softmax_scale: beta, multiplied into the queries before the cast to `dtype`. head_scales: the same for each head.
    """
    zeros = layout.shape.layers * layout.shape.hidden if form.zero_output_bias else 0
    size = (layout.shape.parameters + zeros) * dtype.itemsize
    shards = max(1, -(-size // _SHARD_BYTES))
    limit = -(-size // shards)
    pending: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}
    pending_bytes = total = 0

    def flush() -> None:
        nonlocal pending_bytes
        name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        with atomic_path(out_dir / name) as temporary:
            save_file(pending, temporary, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(pending, name))
        pending.clear()
        pending_bytes = 0

    for entry in tqdm(layout.tensors, desc="export", unit="tensor", disable=None):
        tensors = exported_tensors(layout_dir, layout, form, entry)
        if softmax_scale != 1.0:
            tensors = fold(tensors, layout.shape, softmax_scale)
        if head_scales is not None:
            tensors = fold_heads(tensors, layout.shape, head_scales)
        for name, tensor in tensors.items():
            pending[name] = _cast(tensor, dtype, name)
            pending_bytes += tensor.numel() * dtype.itemsize
            total += tensor.numel() * dtype.itemsize
        if pending_bytes >= limit:
            flush()
    if pending:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(out_dir / "model.safetensors.index.json", index)


def exported_tensors(layout_dir: Path, layout: Layout, form: HubFormat, entry: Entry) -> dict[str, torch.Tensor]:
    """The tensors of the exported model that one tensor of the layout makes, under their names there.

    SmolLM3 and Qwen3 have biases on all four projections of the attention or on none, Qwen2 not on the last: there it
    is zero.
    """
    tensors = read_sources(layout_dir, layout, entry)
    if form.zero_output_bias and entry.join is Join.QKV and entry.target.endswith("bias"):
        name = entry.sources[0].replace("q_proj", "o_proj")
        tensors[name] = torch.zeros(layout.shape.hidden, dtype=tensors[entry.sources[0]].dtype)
    return tensors


def _cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    cast = tensor.to(dtype).contiguous()
    if not torch.isfinite(cast).all():
        raise SurgeryError(f"{name}: holds NaN, infinity or a number too large for {dtype}; export as float32 to see")
    return cast
