"""Memory of a training run, from the model's shape and the settings alone: an estimate, stated as such.

Weights, gradients and optimizer follow ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1); activations
follow the bookkeeping of Korthikanti et al. 2022 (arXiv:2205.05198, section 4) for the blocks as they are built here.
"""

from dataclasses import dataclass

from model_surgery.megatron.logit_parts import part_tokens
from model_surgery.megatron.te.settings import FILLED_HEAD_DIM
from model_surgery.shape import ModelShape
from pipeline.recipe.recalibration import ResolvedTraining

GIB = 1 << 30
REDUCE_BUCKET = 200_000_000
"""Gradients that DeepSpeed collects before it sums them over ranks; it holds a buffer of that many."""
_LIVE_AT_STAGE_3 = 1_000_000_000
"""Weights that DeepSpeed's ZeRO 3 leaves gathered (stage3_max_live_parameters)."""
_VALUE = {"fp32": 4, "bf16": 2}
_FP8 = 1
_FP32 = 4


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    communication: int
    """Gradients on their way between ranks, and weights that ZeRO 3 has gathered."""
    activations: int
    """Kept from the forward to the backward pass."""
    working: int
    """The largest of what lives for a moment: logits with the output layer's gradient, or a layer's gradients."""

    @property
    def total(self) -> int:
        kept = self.weights + self.gradients + self.optimizer
        return kept + self.communication + self.activations + self.working


def training_memory(
    shape: ModelShape, config: ResolvedTraining, *, tensor_parallel: int, length: int
) -> TrainingMemory:
    """What one rank holds at the peak of a step; `config` has numbers for micro_batch and data_parallel.

    `length`: tokens of a row. Not in it: what CUDA, NCCL and the allocator keep for themselves, one or two GiB.
    """
    shape = shape.padded(tensor_parallel)
    parameters, ranks, stage = shape.parameters // tensor_parallel, config.data_parallel, config.zero_stage
    value, tokens = _VALUE[config.dtype], config.micro_batch * length
    layer = tokens * layer_bytes(shape, config, tensor_parallel=tensor_parallel, length=length)
    # Of the feed-forward's gradients those of gate and up twice, as they are put together, and that of their product.
    gradients_of_layer = tokens * 5 * shape.ffn // tensor_parallel * value
    words = shape.vocab // tensor_parallel
    # The logits of a part of the tokens in fp32, which become their own gradient; in bf16 also those of all tokens.
    logits = min(tokens, part_tokens(words, "cuda")) * words * _FP32 + words * shape.hidden * value
    logits += tokens * words * value if value < _FP32 else 0
    recomputed = config.recompute == "full"
    inputs = tokens * shape.hidden // _row_parts(config, tensor_parallel) * value
    return TrainingMemory(
        weights=_shared(parameters * value, ranks, stage >= 3),
        gradients=_shared(parameters * _FP32, ranks, stage >= 2),
        # AdamW's two moments and the master weights in fp32; DeepSpeed keeps masters beside fp32 weights too.
        optimizer=_shared(parameters * 3 * _FP32, ranks, stage >= 1),
        communication=_communication(parameters, value, stage),
        activations=shape.layers * (inputs if recomputed else layer) + _fp8_weights(shape, config, tensor_parallel),
        working=max(logits, gradients_of_layer + (layer if recomputed else 0)),
    )


def layer_bytes(shape: ModelShape, config: ResolvedTraining, *, tensor_parallel: int, length: int) -> int:
    """Bytes that one layer keeps per token for its backward pass.

    Whole on every TP rank but under sequence parallelism: what goes into both norms and into the matrices after them.
    Split over TP: queries, keys, values and the attention's output; gate and up, and what is made of them. With
    documents masked also the mask, in the working precision, whole on every rank.

    By torch's kernels for GPUs. On a CPU its RMSNorm keeps the normed rows as well, in fp32: 8 bytes more per hidden
    value in fp32, 12 in bf16.
    """
    value = _VALUE[config.dtype]
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    masked, grouped = config.mask_documents, shape.heads > shape.kv_heads
    # Queries that share keys are copied out of their groups; under a mask keys are repeated for them.
    attention = 3 * queries + 2 * keys if grouped and not masked else 2 * queries + 2 * max(queries, keys)
    split = attention * value + _filled_bytes(shape, config, queries) + 3 * shape.ffn * value
    split += _norm_bytes(shape.q_norm, queries, value)
    split += _norm_bytes(shape.k_norm, keys, value)
    whole = 4 * shape.hidden * value // _row_parts(config, tensor_parallel)
    return whole + split // tensor_parallel + (length * value if masked else 0)


def _filled_bytes(shape: ModelShape, config: ResolvedTraining, queries: int) -> int:
    """What attention in FP8 keeps per token beyond what it would in bf16, where heads are filled up with zeros.

    Queries, keys, values and the result in FP8, filled, and the result as it goes on; while the run warms up, all of
    that in bf16. Heads that are not filled take less than in bf16, which may still be what is chosen in the end.
    """
    fp8 = config.fp8
    if fp8 is None or not fp8.pad_head_dim or shape.head_dim >= FILLED_HEAD_DIM:
        return 0
    filled = 4 * queries * FILLED_HEAD_DIM // shape.head_dim
    value = _VALUE["bf16"] if fp8.warmup_steps else _FP8
    return max(0, filled * value + (queries - 4 * queries) * _VALUE["bf16"])


def _fp8_weights(shape: ModelShape, config: ResolvedTraining, tensor_parallel: int) -> int:
    """The layers' matrices in FP8, two ways round, which live from the forward to the backward pass."""
    if config.fp8 is None or config.fp8.linear == "off":
        return 0
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    return 2 * _FP8 * (shape.parameters - embeddings) // tensor_parallel


def _communication(parameters: int, value: int, stage: int) -> int:
    """Buffers that DeepSpeed fills during the backward pass, by its code and as measured.

    ZeRO 1 and 2: one bucket; ZeRO 1 in bf16 none, as it sums the fp32 gradients in place. ZeRO 3: a bucket, its copy
    for the reduction, and the gathered weights.
    """
    bucket = min(parameters, REDUCE_BUCKET) * value
    if stage == 3:
        return 2 * bucket + min(parameters, _LIVE_AT_STAGE_3) * value
    return 0 if stage == 1 and value < _FP32 else bucket


def _norm_bytes(kind: str, width: int, value: int) -> int:
    """What a norm of queries or keys adds per token: its result, and over all heads two steps on the way in fp32."""
    return width * {"none": 0, "per_head": value, "full": 3 * _FP32}[kind]


def _row_parts(config: ResolvedTraining, tensor_parallel: int) -> int:
    return tensor_parallel if config.sequence_parallel else 1


def _shared(size: int, ranks: int, is_shared: bool) -> int:
    return size // ranks if is_shared else size
