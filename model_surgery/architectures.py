"""Which Hugging Face tensors make which Megatron tensor: one declarative map, used in both directions."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from model_surgery.shape import ModelShape


class Join(StrEnum):
    """How source tensors are put together, and along which axis the result is cut for TP."""

    REPLICATED = "replicated"
    """One source, whole on every rank."""
    ROWS = "rows"
    """One source, cut along its output dimension (column-parallel linear, vocabulary)."""
    COLUMNS = "columns"
    """One source, cut along its input dimension (row-parallel linear)."""
    QKV = "qkv"
    """q, k, v interleaved by KV group: [q heads of the group, k head, v head] per group; cut between groups."""
    GATE_UP = "gate_up"
    """gate and up; every rank holds its rows of gate, then its rows of up."""


@dataclass(frozen=True)
class Rule:
    """One Megatron tensor: its name, the Hugging Face tensors it comes from, and how they are joined."""

    target: str
    sources: tuple[str, ...]
    join: Join


_HF, _MEGATRON = "model.layers.{}.", "decoder.layers.{}."

LLAMA = (
    Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Join.ROWS),
    Rule(_MEGATRON + "input_layernorm.weight", (_HF + "input_layernorm.weight",), Join.REPLICATED),
    Rule(
        _MEGATRON + "self_attention.linear_qkv.weight",
        (_HF + "self_attn.q_proj.weight", _HF + "self_attn.k_proj.weight", _HF + "self_attn.v_proj.weight"),
        Join.QKV,
    ),
    Rule(_MEGATRON + "self_attention.linear_proj.weight", (_HF + "self_attn.o_proj.weight",), Join.COLUMNS),
    Rule(_MEGATRON + "pre_mlp_layernorm.weight", (_HF + "post_attention_layernorm.weight",), Join.REPLICATED),
    Rule(
        _MEGATRON + "mlp.linear_fc1.weight",
        (_HF + "mlp.gate_proj.weight", _HF + "mlp.up_proj.weight"),
        Join.GATE_UP,
    ),
    Rule(_MEGATRON + "mlp.linear_fc2.weight", (_HF + "mlp.down_proj.weight",), Join.COLUMNS),
    Rule("decoder.final_layernorm.weight", ("model.norm.weight",), Join.REPLICATED),
    Rule("output_layer.weight", ("lm_head.weight",), Join.ROWS),
)


def rules(shape: ModelShape) -> Iterator[Rule]:
    """Every tensor of a model of this shape, with its layer number filled in."""
    for rule in LLAMA:
        if rule.target == "output_layer.weight" and shape.tied:
            continue
        layers = range(shape.layers) if "{}" in rule.target else (0,)
        for layer in layers:
            yield Rule(rule.target.format(layer), tuple(source.format(layer) for source in rule.sources), rule.join)


def source_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a Hugging Face checkpoint of this shape holds."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    by_suffix: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (shape.vocab, shape.hidden),
        "lm_head.weight": (shape.vocab, shape.hidden),
        "q_proj.weight": (q, shape.hidden),
        "k_proj.weight": (kv, shape.hidden),
        "v_proj.weight": (kv, shape.hidden),
        "o_proj.weight": (shape.hidden, q),
        "gate_proj.weight": (shape.ffn, shape.hidden),
        "up_proj.weight": (shape.ffn, shape.hidden),
        "down_proj.weight": (shape.hidden, shape.ffn),
        "norm.weight": (shape.hidden,),
    }

    def of(name: str) -> tuple[int, ...]:
        return next(size for suffix, size in by_suffix.items() if name.endswith(suffix))

    return {name: of(name) for rule in rules(shape) for name in rule.sources}
