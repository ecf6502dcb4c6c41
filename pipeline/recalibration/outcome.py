"""What training leaves behind: the weights as a layout, and a probe that the export must reproduce."""

from contextlib import nullcontext
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from megatron.core import parallel_state
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from foundation.files import atomic_path
from model_surgery.architectures import rules
from model_surgery.layout import Layout
from model_surgery.layout_writer import LayoutWriter
from model_surgery.megatron.model import token_losses
from pipeline.recalibration.batches import read_rows
from pipeline.recalibration.job import Job

PROBE_FILE = "probe.safetensors"
_PROBE_ROWS = 4


def save_outcome(
    engine: deepspeed.DeepSpeedEngine,
    job: Job,
    layout: Layout,
    validation: Dataset,
    steps: int,
    tokens: int,
) -> None:
    """Writes out_dir/probe.safetensors and out_dir/layout (fp32 weights); layout.json comes last."""
    save_probe(engine, validation, job.out_dir / PROBE_FILE)
    parameters = dict(engine.module.named_parameters())
    is_first = torch.distributed.get_rank() == 0
    opened = LayoutWriter(job.out_dir / "layout", layout.shape, layout.tensor_parallel) if is_first else nullcontext()
    with opened as writer:
        for rule in rules(layout.shape):
            slices = gather_slices(parameters[rule.target])
            if writer:
                writer.put_slices(rule, slices)
        if writer:
            writer.finish(
                position_embedding=job.position_embedding,
                **layout.origin,
                trained_steps=steps,
                trained_tokens=tokens,
            )
    torch.distributed.barrier()


def gather_slices(parameter: torch.nn.Parameter) -> list[Tensor]:
    """The fp32 slices of all TP ranks, in order, on rank 0; an empty list elsewhere. All ranks must call it."""
    whole = safe_get_full_fp32_param(parameter)  # every data-parallel rank gives its ZeRO part
    mine = (parameter.data if whole is None else whole).float().contiguous()
    if parallel_state.get_data_parallel_rank() != 0:
        return []
    group = parallel_state.get_tensor_model_parallel_group()
    is_first = torch.distributed.get_rank() == 0
    slices = [torch.empty_like(mine) for _ in range(group.size())] if is_first else None
    torch.distributed.gather(mine, slices, dst=parallel_state.get_tensor_model_parallel_src_rank(), group=group)
    return [piece.cpu() for piece in slices] if slices else []


def save_probe(engine: deepspeed.DeepSpeedEngine, validation: Dataset, path: Path) -> None:
    """Tokens, labels and the trained model's loss of every token for a few held-out rows, each [rows, length].

    Attention is causal over the whole row even if documents were masked in training, for that is how the exported model
    reads the rows; so the losses of tokens after a row's first document are not those of training.
    """
    engine.eval()
    rows = read_rows(validation, range(min(_PROBE_ROWS, len(validation))), engine.device)
    with torch.no_grad():
        losses = token_losses(engine, rows.tokens, rows.labels)
    engine.train()
    if torch.distributed.get_rank() == 0:
        with atomic_path(path) as temporary:
            tensors = {"tokens": rows.tokens.cpu(), "labels": rows.labels.cpu(), "losses": losses.float().cpu()}
            dtype = next(engine.module.parameters()).dtype
            save_file(tensors, temporary, metadata={"dtype": str(dtype).removeprefix("torch.")})
