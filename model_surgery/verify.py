"""Does the layout compute what its source computes? Compared as running models, not as tensors.

Without RoPE a consistent permutation of q and k dimensions changes no logit, so a comparison without positions cannot
catch every wrong cut. Hence two: (a) the source as published against the layout's Megatron-core model *with* RoPE at
its TP degree, in as many processes; (b) the source with its rotation made the identity against the layout without PE.
Numbers that move logits by less than the limit in some models (the norms' epsilon) are compared one by one, as
transformers reads them.
"""

import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_surgery.files import full_disk_is_bad_input
from model_surgery.layout import Layout, read_rank
from model_surgery.shape import ModelShape

log = logging.getLogger(__name__)

LOGIT_LIMIT = 1e-4
"""Largest accepted difference of a logit in fp32, in units of the logits' root mean square where that exceeds 1."""
_IDENTITY_ROTATION = {"rope_type": "linear", "factor": 1e30}
_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Comparison:
    """Two sets of logits for the same tokens."""

    max_difference: float
    limit: float
    top1_agreement: float

    @property
    def ok(self) -> bool:
        return self.max_difference <= self.limit and self.top1_agreement == 1.0


@dataclass(frozen=True)
class Verification:
    """Source against layout, with RoPE and without any positional embedding."""

    with_rope: Comparison
    without_pe: Comparison
    tokens: int
    config_differences: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.with_rope.ok and self.without_pe.ok and not self.config_differences

    def describe(self) -> str:
        """One line with both differences, their limits and the top-1 agreement."""
        parts = [
            f"{name}: largest logit difference {c.max_difference:.2e} (limit {c.limit:.0e}), "
            f"top-1 agreement {c.top1_agreement:.2%}"
            for name, c in (("with RoPE", self.with_rope), ("without PE", self.without_pe))
        ]
        return "; ".join([*self.config_differences, *parts, f"{self.tokens} tokens"])

    def facts(self) -> dict[str, object]:
        """The numbers for a manifest."""
        return asdict(self)


def verify(source: Path, folder: Path, layout: Layout, *, length: int, seed: int = 0) -> Verification:
    """Runs source and layout on two random sequences of `length` tokens (at most the context) in fp32."""
    length = min(length, layout.shape.context)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(layout.shape.vocab, (2, length), generator=generator)
    with tempfile.TemporaryDirectory(prefix="drope-verify-") as scratch, full_disk_is_bad_input(Path(scratch)):
        processes = _start_layout_processes(folder, layout.tensor_parallel, tokens, Path(scratch))
        try:
            wanted = {
                "rope": source_logits(source, tokens, identity_rotation=False),
                "none": source_logits(source, tokens, identity_rotation=True),
            }
            while not processes.join():
                log.debug("waiting for the layout's logits")
        except BaseException:
            for process in processes.processes:
                process.terminate()
            raise
        got = load_file(Path(scratch) / "logits.safetensors")
    return judge(wanted, got, config_differences(source, layout.shape))


def judge(wanted: dict[str, Tensor], got: dict[str, Tensor], config_differences: tuple[str, ...]) -> Verification:
    """Logits of source and layout, [batch, length, vocab] under "rope" and "none"."""
    return Verification(
        with_rope=compare(wanted["rope"], got["rope"]),
        without_pe=compare(wanted["none"], got["none"]),
        tokens=wanted["rope"][..., 0].numel(),
        config_differences=config_differences,
    )


def config_differences(source: Path, shape: ModelShape) -> tuple[str, ...]:
    """What transformers reads in the source's config.json and the layout's shape has otherwise, one text each."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    pairs = {
        "rms_norm_eps": (config.rms_norm_eps, shape.norm_eps),
        "rope_theta": (config.rope_parameters["rope_theta"], shape.rope_theta),
        "max_position_embeddings": (config.max_position_embeddings, shape.context),
        "tie_word_embeddings": (config.tie_word_embeddings, shape.tied),
    }
    return tuple(
        f"{key} is {theirs!r}, in the layout {ours!r}" for key, (theirs, ours) in pairs.items() if theirs != ours
    )


def compare(wanted: Tensor, got: Tensor) -> Comparison:
    """Logits [batch, length, vocab]. A top-1 difference counts unless the two best logits are closer than the limit."""
    limit = LOGIT_LIMIT * max(1.0, wanted.square().mean().sqrt().item())
    best = wanted.topk(2, dim=-1).values
    clear = best[..., 0] - best[..., 1] > 2 * limit
    same = (wanted.argmax(-1) == got.argmax(-1)) | ~clear
    difference = (wanted - got).abs().max().item()
    return Comparison(max_difference=difference, limit=limit, top1_agreement=same.double().mean().item())


def source_logits(source: Path, tokens: Tensor, *, identity_rotation: bool) -> Tensor:
    """Logits [batch, length, vocab] by transformers' own model class in fp32."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    config = AutoConfig.from_pretrained(source)
    if identity_rotation:
        # Angles are divided by the factor, so that every rotation rounds to the identity; same weights, same code.
        config.rope_parameters = {**(config.rope_parameters or {}), **_IDENTITY_ROTATION}
    model = AutoModelForCausalLM.from_pretrained(source, config=config, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits


def layout_logits(folder: Path, rank: int, tokens: Tensor) -> dict[str, Tensor]:
    """Logits [batch, length, vocab] of the layout's Megatron-core model with RoPE ("rope") and without ("none").

    All TP ranks must call it, after `start_parallel`.
    """
    from model_surgery.megatron.model import build_model, full_logits, load_slices

    layout = Layout.load(folder)
    slices = read_rank(folder, layout, rank)
    logits = {}
    for position_embedding in ("rope", "none"):
        model = build_model(layout.shape, position_embedding=position_embedding).eval()
        load_slices(model, slices)
        logits[position_embedding] = full_logits(model, tokens)[..., : layout.shape.vocab].contiguous()
    return logits


def _start_layout_processes(folder: Path, tensor_parallel: int, tokens: Tensor, scratch: Path):
    arguments = (str(folder), tensor_parallel, tokens, str(scratch))
    return torch.multiprocessing.spawn(_layout_logits, args=arguments, nprocs=tensor_parallel, join=False)


def _layout_logits(rank: int, folder: str, tensor_parallel: int, tokens: Tensor, scratch: str) -> None:
    """One TP rank: runs the layout with RoPE and without, rank 0 saves the gathered logits.

    On the CPU, as the source is: fp32 there needs no setting of TF32, and the ranks need no GPU each.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything asks CUDA in this new process
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // tensor_parallel))
    from model_surgery.megatron.cpu import use_cpu_if_no_gpu
    from model_surgery.megatron.model import start_parallel

    use_cpu_if_no_gpu()
    store = torch.distributed.FileStore(f"{scratch}/store", tensor_parallel)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=tensor_parallel, timeout=_TIMEOUT)
    start_parallel(tensor_parallel)
    logits = layout_logits(Path(folder), rank, tokens)
    if rank == 0:
        save_file(logits, f"{scratch}/logits.safetensors")
    torch.distributed.destroy_process_group()
