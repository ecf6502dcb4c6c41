"""Memory of an evaluation, from the model's sizes and the settings alone: an estimate, stated as such.

By the code of transformers' Llama block, which eval/tasks/forward.py and eval/answers/generation.py run without
gradients: of one layer at a time, since what a layer makes is let go with it. Assumed: attention by a kernel of torch's
scaled_dot_product_attention that forms no scores (flash or memory-efficient). Not in it: what CUDA and the allocator
keep for themselves, one or two GiB, and lm-eval's logits of a batch of items, whose lengths only the items tell.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.config import LENGTH_DEPENDENT, EvaluationConfig
from eval.errors import EvaluationError
from eval.models import head_dim_of
from eval.tasks.forward import LOGIT_ELEMENTS
from eval.units import Family, rows_of

if TYPE_CHECKING:
    pass

GIB = 1 << 30
_VALUE = {"float32": 4, "bfloat16": 2}
_FP32 = 4


@dataclass(frozen=True)
class Sizes:
    """Of a transformer of the Llama family; `tied`: whether the output layer is the input's embeddings."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """Those of a Hugging Face config."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            ffn=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim_of(config),
            vocab=config.vocab_size,
            tied=config.tie_word_embeddings,
        )

    @property
    def parameters(self) -> int:
        """Weights of all matrices and embeddings; norms and biases are some thousandths of them."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + 3 * self.hidden * self.ffn) + embeddings


@dataclass(frozen=True)
class EvaluationMemory:
    """Bytes at the peak, while `tokens` tokens are read at context factor `factor`."""

    factor: int
    tokens: int
    weights: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations

    def __str__(self) -> str:
        """As 'X GiB at 4x (8,192 tokens): weights .., KV cache .., activations ..'."""
        parts = {"weights": self.weights, "KV cache": self.kv_cache, "activations": self.activations}
        shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        return f"{self.total / GIB:.1f} GiB at {self.factor}x ({self.tokens:,} tokens): {shown}"


def evaluation_memory(
    sizes: Sizes, config: EvaluationConfig, context: int, cells: Iterable[tuple[Family, int]] | None = None
) -> EvaluationMemory:
    """The largest of what the cells take, each a family of tasks at a context factor; None: all of `config`.

    context: training length C in tokens. Loss, recall and lm-eval's tasks read whole rows, the others generate answers.
    """
    if cells is None:
        cells = [(family, factors[-1]) for family, _, factors in rows_of(config)]
    peaks = [
        (_of_generation if family in ("niah", "longbench") else _of_rows)(sizes, config, factor, factor * context)
        for family, factor in cells
    ]
    return max(peaks, key=lambda memory: memory.total)


def _of_rows(sizes: Sizes, config: EvaluationConfig, factor: int, length: int) -> EvaluationMemory:
    """Rows of `length` tokens, as many as there are and batch_tokens allow; no keys and values are kept."""
    value, rows = _VALUE[config.dtype], config.recall.samples if config.recall else 1
    tokens = max(length, min(config.batch_tokens, max(config.loss.tokens, rows * length)) // length * length)
    return EvaluationMemory(factor, length, sizes.parameters * value, 0, activation_bytes(sizes, tokens, value))


def _of_generation(sizes: Sizes, config: EvaluationConfig, factor: int, length: int) -> EvaluationMemory:
    """One prompt of `length` tokens: more of them, and the beginnings that they share, only where there is room.

    A prompt is read in pieces of batch_tokens but for variants that must read it whole. For a later piece a GPU is
    given the grouped keys and values of a layer repeated for their queries (eval/answers/piece_attention.py).
    """
    value, pieces = _VALUE[config.dtype], [name for name in config.variants if name not in LENGTH_DEPENDENT]
    read = length if len(pieces) < len(config.variants) else min(length, config.batch_tokens)
    activations = activation_bytes(sizes, read, value)
    if pieces and sizes.heads > sizes.kv_heads:
        activations += 2 * length * sizes.heads * sizes.head_dim * value
    cache = kv_cache_bytes(sizes, length, value)
    return EvaluationMemory(factor, length, sizes.parameters * value, cache, activations)


def kv_cache_bytes(sizes: Sizes, tokens: int, value: int) -> int:
    """Keys and values of all layers; value: bytes of a number."""
    return 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * tokens * value


def activation_bytes(sizes: Sizes, tokens: int, value: int) -> int:
    """The largest of what lives for a moment while `tokens` tokens are read; value: bytes of a number.

    In the feed-forward: the embeddings and the layer's input, which the model's loop holds on to, the sum after the
    attention, its norm; activated gate, up and their product. In the attention: embeddings, input and norm; queries
    with three more of their size while they are rotated; keys and values. After the layers: the last states, and the
    logits of a piece in fp32 with their log-softmax.
    """
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    feed_forward = (4 * sizes.hidden + 3 * sizes.ffn) * tokens * value
    attention = (3 * sizes.hidden + 4 * queries + 2 * keys) * tokens * value
    logits = min(tokens * sizes.vocab, LOGIT_ELEMENTS) * 2 * _FP32
    return max(feed_forward, attention, sizes.hidden * tokens * value + logits)


def ways_out(memory: EvaluationMemory, config: EvaluationConfig) -> str:
    """The settings of which a smaller value makes an evaluation take less."""
    ways = ["smaller niah.context_factors or longbench.factor" if memory.kv_cache else "smaller context_factors"]
    if memory.tokens < config.batch_tokens:
        ways.append("a smaller batch_tokens")
    if config.dtype == "float32":
        ways.append("dtype bfloat16")
    return " or ".join(ways)


def require_memory(folder: Path, memory: EvaluationMemory, config: EvaluationConfig, available: int) -> None:
    """Raises: EvaluationError if `memory`, that of the model in `folder`, is more than the `available` bytes."""
    if memory.total > available:
        raise EvaluationError(
            f"{folder}: evaluating takes an estimated {memory}; there are {available / GIB:.1f} GiB; take "
            f"{ways_out(memory, config)}"
        )
