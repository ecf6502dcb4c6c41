"""Memory and arithmetic of a training run, from the model's shape alone: estimates, stated as such.

Weights, gradients and optimizer follow ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1); activations
follow the bookkeeping of Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1) for a SwiGLU block with fused
attention and no recomputation.
"""

from dataclasses import dataclass

from model_surgery.shape import ModelShape

GIB = 1 << 30
REDUCE_BUCKET = 200_000_000
"""Gradients that DeepSpeed collects before it sums them over ranks; it holds a buffer of that many."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def training_memory(
    shape: ModelShape,
    *,
    tensor_parallel: int,
    data_parallel: int,
    zero_stage: int,
    bytes_per_value: int,
    bytes_per_gradient: int = 4,
    micro_batch: int,
    length: int,
) -> TrainingMemory:
    """What one rank holds at the peak of a step.

    `bytes_per_value` is 2 for bf16 and 4 for fp32; gradients are summed in fp32 in either.
    """
    shape = shape.padded(tensor_parallel)
    parameters = shape.parameters // tensor_parallel
    # AdamW's two moments and the master weights in fp32; DeepSpeed keeps masters beside fp32 weights too.
    optimizer = parameters * 12
    tokens = micro_batch * length
    return TrainingMemory(
        weights=_shared(parameters * bytes_per_value, data_parallel, zero_stage >= 3),
        gradients=_shared(parameters * bytes_per_gradient, data_parallel, zero_stage >= 2),
        optimizer=_shared(optimizer, data_parallel, zero_stage >= 1),
        activations=shape.layers * tokens * activation_values(shape, tensor_parallel) * bytes_per_value,
        # The vocabulary slice in the working precision, and in fp32 for the softmax and its gradient.
        logits=tokens * shape.vocab // tensor_parallel * (bytes_per_value + 8),
    )


def activation_values(shape: ModelShape, tensor_parallel: int) -> int:
    """Values that one layer keeps per token for its backward pass.

    Whole on every TP rank: the inputs and outputs of both norms (4 hidden). Split over TP: q, k, v and the attention's
    output, gate, up, silu(gate) and their product; with norms of queries or keys what goes into these.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 2 * queries + 2 * keys
    attention += (queries if shape.q_norm != "none" else 0) + (keys if shape.k_norm != "none" else 0)
    return 4 * shape.hidden + (attention + 4 * shape.ffn) // tensor_parallel


def training_flops(shape: ModelShape, *, tokens: int, length: int) -> float:
    """Floating-point operations of forward and backward: 6 per weight and token, plus causal attention.

    Attention: 12 * layers * heads * head_dim * length per token, halved by the causal mask (Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B). Of the embeddings only the output head multiplies.
    """
    matrices = shape.parameters - (0 if shape.tied else shape.vocab * shape.hidden)
    attention = 6 * shape.layers * shape.heads * shape.head_dim * length
    return float(tokens) * (6 * matrices + attention)


def _shared(size: int, ranks: int, is_shared: bool) -> int:
    return size // ranks if is_shared else size
