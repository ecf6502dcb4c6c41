"""What training leaves behind: the weights as a layout, and the export check: losses that the export must reproduce."""

from contextlib import nullcontext
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from megatron.core import parallel_state
from safetensors.torch import save_file
from torch import Tensor

from data_prep.rows import RowDataset
from foundation.files import atomic_path
from model_surgery.architectures import rules
from model_surgery.layout import Layout
from model_surgery.layout_writer import LayoutWriter
from model_surgery.megatron.model import token_losses
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.batches import read_rows

EXPORT_CHECK_FILE = "probe.safetensors"
_EXPORT_CHECK_ROWS = 4


def save_outcome(
    engine: deepspeed.DeepSpeedEngine,
    spec: TrainingSpec,
    layout: Layout,
    validation: RowDataset,
    steps: int,
    tokens: int,
) -> None:
    """Writes out_dir/probe.safetensors and out_dir/layout (fp32 weights); layout.json comes last."""
    save_export_check(engine, validation, spec.out_dir / EXPORT_CHECK_FILE)
    parameters = dict(engine.module.named_parameters())
    is_first = torch.distributed.get_rank() == 0
    opened = LayoutWriter(spec.out_dir / "layout", layout.shape, layout.tensor_parallel) if is_first else nullcontext()
    with opened as writer:
        for rule in rules(layout.shape):
            slices = gather_slices(parameters[rule.target])
            if writer:
                writer.put_slices(rule, slices)
        if writer:
            writer.finish(
                position_embedding=spec.position_embedding,
                **layout.origin,
                trained_steps=steps,
                trained_tokens=tokens,
            )
    torch.distributed.barrier()


def gather_slices(parameter: torch.nn.Parameter) -> list[Tensor]:
    """The fp32 slices of all TP ranks, in order, on rank 0; an empty list elsewhere. All ranks must call it."""
    whole = safe_get_full_fp32_param(parameter)  # every data-parallel rank gives its ZeRO part
    own = (parameter.data if whole is None else whole).float().contiguous()
    if parallel_state.get_data_parallel_rank() != 0:
        return []
    group = parallel_state.get_tensor_model_parallel_group()
    is_first = torch.distributed.get_rank() == 0
    slices = [torch.empty_like(own) for _ in range(group.size())] if is_first else None
    torch.distributed.gather(own, slices, dst=parallel_state.get_tensor_model_parallel_src_rank(), group=group)
    return [part.cpu() for part in slices] if slices else []


def save_export_check(engine: deepspeed.DeepSpeedEngine, validation: RowDataset, path: Path) -> None:
    """Tokens, labels and the trained model's loss of every token for a few held-out rows, each [rows, length].

    Attention is causal over the whole row even if documents were masked in training, for that is how the exported model
    reads the rows; so the losses of tokens after a row's first document are not those of training.
    """
    engine.eval()
    rows = read_rows(validation, range(min(_EXPORT_CHECK_ROWS, len(validation))), engine.device)
    with torch.no_grad():
        losses = token_losses(engine, rows.tokens, rows.labels)
    engine.train()
    if torch.distributed.get_rank() == 0:
        with atomic_path(path) as temporary:
            tensors = {"tokens": rows.tokens.cpu(), "labels": rows.labels.cpu(), "losses": losses.float().cpu()}
            dtype = next(engine.module.parameters()).dtype
            save_file(tensors, temporary, metadata={"dtype": str(dtype).removeprefix("torch.")})
