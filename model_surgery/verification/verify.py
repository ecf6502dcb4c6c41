"""Does the layout compute what its source computes? Compared as running models, and tensor by tensor.

Without RoPE a consistent permutation of q and k dimensions changes no logit, so a comparison without positions cannot
catch every wrong cut. Hence two of running models: (a) the source in transformers with RoPE against the layout's
Megatron-core model *with* RoPE at its TP degree, in as many processes; (b) the source with its rotation made the
identity against the layout without PE. (c) Every tensor, put together again from all ranks, must be the source's, byte
for byte. Where surgery put in norms of queries and keys, a further comparison (d) has them in both models.
Numbers that move logits by less than the limit in some models (the norms' epsilon) are compared one by one, as
transformers reads them.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from foundation.full_disk import explained_full_disk
from model_surgery.architectures import rules
from model_surgery.checkpoint import Checkpoint
from model_surgery.layout import Layout, read_rank, read_sources
from model_surgery.shape import ModelShape, PositionEmbedding, read_shape
from model_surgery.verification.reference import logits_of, model_of_layers, reference_config, source_logits

LOGIT_LIMIT = 1e-4
"""Largest accepted difference of a logit in fp32, in units of the logits' root mean square where that exceeds 1."""
_TIMEOUT = timedelta(minutes=30)
"""How long one rank may wait for another: they hold equal parts, so what differs is how fast the disk gives them."""

ROPE, NO_PE, QK_NORM = "with RoPE", "without PE", "with QK-norm"


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
    """Source against layout: logits by what the models were run with, and what of tensors and numbers differs."""

    comparisons: dict[str, Comparison]
    tokens: int
    text_tokens: int
    """How many of the tokens were real text; the others were drawn at random."""
    layers: tuple[int, ...]
    config_differences: tuple[str, ...] = ()
    tensors: int = 0
    changed_tensors: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        alike = all(comparison.ok for comparison in self.comparisons.values())
        return alike and not self.config_differences and not self.changed_tensors

    def describe(self) -> str:
        """One line with what differs, the differences of logits, their limits and the top-1 agreement."""
        parts = [*self.config_differences]
        if self.changed_tensors:
            more = f" and {len(self.changed_tensors) - 1} more" if len(self.changed_tensors) > 1 else ""
            parts.append(f"tensor {self.changed_tensors[0]}{more} is not the source's")
        parts += [
            f"{name}: largest logit difference {c.max_difference:.2e} (limit {c.limit:.0e}), "
            f"top-1 agreement {c.top1_agreement:.2%}"
            for name, c in self.comparisons.items()
        ]
        return "; ".join([*parts, f"{self.tensors} tensors, {len(self.layers)} layers, {self.tokens} tokens"])

    def facts(self) -> dict[str, object]:
        """The numbers for a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Run:
    """One way of running both models. `shape` says which norms they have; layers: which of the layers they have."""

    name: str
    shape: ModelShape
    position_embedding: PositionEmbedding
    layers: tuple[int, ...]

    @property
    def built(self) -> ModelShape:
        """The shape of a model of those layers alone."""
        return self.shape.model_copy(update={"layers": len(self.layers)})


def sampled_layers(layers: int) -> tuple[int, ...]:
    """First, middle and last layer."""
    return tuple(sorted({0, layers // 2, layers - 1}))


def planned_runs(source: ModelShape, layout: ModelShape, layers: Sequence[int]) -> list[Run]:
    """The comparisons of running models that a layout's verification makes; all with the numbers of the layout."""
    plain = layout.model_copy(update={"q_norm": source.q_norm, "k_norm": source.k_norm})
    runs = [Run(ROPE, plain, "rope", tuple(layers)), Run(NO_PE, plain, "none", tuple(layers))]
    return runs + ([Run(QK_NORM, layout, "none", tuple(layers))] if layout != plain else [])


def verify(
    source: Path,
    folder: Path,
    layout: Layout,
    *,
    tokens: Tensor,
    text_tokens: int,
    sample: bool = False,
    norms: dict[str, Tensor] | None = None,
) -> Verification:
    """Runs source and layout in fp32 on `tokens` [batch, length], and compares all tensors.

    `sample`: only the first, the middle and the last layer are run. `norms`: those that surgery put in, by their
    Hugging Face names.
    """
    shape, norms = read_shape(source), norms or {}
    layers = sampled_layers(layout.shape.layers) if sample else tuple(range(layout.shape.layers))
    runs = planned_runs(shape, layout.shape, layers)
    changed = changed_tensors(source, folder, layout, norms)  # first: the cheapest way to find a damaged disk
    with tempfile.TemporaryDirectory(prefix="drope-verify-") as scratch, explained_full_disk(Path(scratch)):
        processes = _start_layout_processes(folder, layout.tensor_parallel, tokens, runs, Path(scratch))
        try:
            expected = {run.name: reference_logits(source, run, tokens, norms) for run in runs}
            while not processes.join():  # joins one process after the other
                continue
        except BaseException:
            for process in processes.processes:
                process.terminate()
            raise
        computed = load_file(Path(scratch) / "logits.safetensors")
    return Verification(
        comparisons={run.name: compare(expected[run.name], computed[run.name]) for run in runs},
        tokens=tokens.numel(),
        text_tokens=text_tokens,
        layers=layers,
        config_differences=config_differences(source, layout.shape),
        tensors=len(layout.tensors),
        changed_tensors=changed,
    )


def changed_tensors(source: Path, folder: Path, layout: Layout, norms: dict[str, Tensor]) -> tuple[str, ...]:
    """Names of the Hugging Face tensors that do not come back from the layout byte for byte."""
    changed = []
    with Checkpoint(source) as checkpoint:
        for entry in tqdm(layout.tensors, desc="verification", unit="tensor", disable=None):
            for name, tensor in read_sources(folder, layout, entry).items():
                original = norms[name] if name in norms else checkpoint.tensor(name)
                if tensor.dtype != original.dtype or not torch.equal(_bytes(tensor), _bytes(original)):
                    changed.append(name)
    return tuple(changed)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def config_differences(source: Path, shape: ModelShape) -> tuple[str, ...]:
    """What transformers reads in the source's config.json and the layout's shape has otherwise, one text each."""
    config = reference_config(source, shape, layers=shape.layers, identity_rotation=False)
    pairs = {
        "rms_norm_eps": (config.rms_norm_eps, shape.norm_eps),
        "rope_theta": (config.rope_parameters["rope_theta"], shape.rope_theta),
        "max_position_embeddings": (config.max_position_embeddings, shape.context),
        "tie_word_embeddings": (config.tie_word_embeddings, shape.tied),
    }
    return tuple(
        f"{key} is {theirs!r}, in the layout {ours!r}" for key, (theirs, ours) in pairs.items() if theirs != ours
    )


def compare(expected: Tensor, computed: Tensor) -> Comparison:
    """Logits [batch, length, vocab]. A top-1 difference counts unless the two best logits are closer than the limit."""
    limit = LOGIT_LIMIT * max(1.0, expected.square().mean().sqrt().item())
    best = expected.topk(2, dim=-1).values
    clear = best[..., 0] - best[..., 1] > 2 * limit
    same = (expected.argmax(-1) == computed.argmax(-1)) | ~clear
    difference = (expected - computed).abs().max().item()
    return Comparison(max_difference=difference, limit=limit, top1_agreement=same.double().mean().item())


def reference_logits(source: Path, run: Run, tokens: Tensor, inserted: dict[str, Tensor]) -> Tensor:
    """Logits [batch, length, vocab] by transformers' own model class in fp32."""
    own = read_shape(source)
    norms = inserted if run.name == QK_NORM else None
    identity_rotation = run.position_embedding == "none"
    if len(run.layers) == own.layers:
        return source_logits(source, tokens, identity_rotation=identity_rotation, norms=norms)
    model = model_of_layers(source, own, run.layers, identity_rotation=identity_rotation, norms=norms)
    return logits_of(model, tokens)


def layout_logits(folder: Path, rank: int, tokens: Tensor, runs: Sequence[Run]) -> dict[str, Tensor]:
    """Logits [batch, length, vocab] of the layout's Megatron-core model, by the names of the runs.

    All TP ranks must call it, after `start_parallel`.
    """
    from model_surgery.megatron.model import build_model, full_logits, load_slices

    layout = Layout.load(folder)
    slices = read_rank(folder, only_layers(layout, runs[0].layers), rank)
    logits = {}
    for run in runs:
        model = build_model(run.built, position_embedding=run.position_embedding).eval()
        load_slices(model, dict(renumbered(run, slices)))
        logits[run.name] = full_logits(model, tokens)[..., : layout.shape.vocab].contiguous()
    return logits


def only_layers(layout: Layout, layers: Sequence[int]) -> Layout:
    """The layout without the tensors of all other layers."""
    if len(layers) == layout.shape.layers:
        return layout
    prefixes = tuple(f"decoder.layers.{layer}." for layer in layers)
    kept = [t for t in layout.tensors if not t.target.startswith("decoder.layers.") or t.target.startswith(prefixes)]
    return layout.model_copy(update={"tensors": tuple(kept)})


def renumbered(run: Run, slices: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The slices that a model of the run's layers and norms holds, under their names there."""
    for rule in rules(run.built):
        parts = rule.target.split(".")
        if parts[:2] == ["decoder", "layers"]:
            parts[2] = str(run.layers[int(parts[2])])
        yield rule.target, slices[".".join(parts)]


def _start_layout_processes(
    folder: Path, tensor_parallel: int, tokens: Tensor, runs: Sequence[Run], scratch: Path
) -> torch.multiprocessing.ProcessContext:
    arguments = (str(folder), tensor_parallel, tokens, runs, str(scratch))
    return torch.multiprocessing.spawn(_layout_logits, args=arguments, nprocs=tensor_parallel, join=False)


def _layout_logits(
    rank: int, folder: str, tensor_parallel: int, tokens: Tensor, runs: Sequence[Run], scratch: str
) -> None:
    """One TP rank: runs the layout in every way, rank 0 saves the gathered logits.

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
    logits = layout_logits(Path(folder), rank, tokens, runs)
    if rank == 0:
        save_file(logits, f"{scratch}/logits.safetensors")
    torch.distributed.destroy_process_group()
