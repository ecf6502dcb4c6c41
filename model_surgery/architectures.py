"""Which Hugging Face tensors make which Megatron tensor: one declarative map, used in both directions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from model_surgery.shape import ModelShape, NormKind, NormPart


class Join(StrEnum):
    """How source tensors are put together, and along which axis the result is cut for TP."""

    REPLICATED = "replicated"
    """One source, whole on every rank."""
    VOCABULARY = "vocabulary"
    """One source, cut between its rows, one for each id."""
    QKV = "qkv"
    """q, k, v (weights or biases) by KV group: [q heads of the group, k head, v head]; cut between groups."""
    HEAD_COLUMNS = "head_columns"
    """One source, cut along its input dimension between query heads, those of a KV group together."""
    HEADS = "heads"
    """One vector over all query heads, cut between them, those of a KV group together (a full-width q norm)."""
    KV_HEADS = "kv_heads"
    """One vector over all KV heads, cut between them (a full-width k norm)."""
    GATE_UP = "gate_up"
    """gate and up; every rank holds its rows of gate, then its rows of up."""
    FFN_COLUMNS = "ffn_columns"
    """One source, cut along its input dimension, the feed-forward's width."""


@dataclass(frozen=True)
class Rule:
    """One Megatron tensor: its name, the Hugging Face tensors it comes from, and how they are joined."""

    target: str
    sources: tuple[str, ...]
    join: Join
    applies: Callable[[ModelShape], bool] = lambda shape: True
    """Whether a model of this shape has the tensor."""


_HF, _MEGATRON = "model.layers.{}.", "decoder.layers.{}."


def _norm_rule(part: NormPart, kind: NormKind, join: Join) -> Rule:
    """The weight of a norm on queries or keys, in a model that has a norm of this kind there."""
    return Rule(
        _MEGATRON + f"self_attention.{part}_layernorm.weight",
        (_HF + f"self_attn.{part}_norm.weight",),
        join,
        applies=lambda shape: shape.norm(part) == kind,
    )


DECODER = (
    Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Join.VOCABULARY),
    Rule(_MEGATRON + "input_layernorm.weight", (_HF + "input_layernorm.weight",), Join.REPLICATED),
    Rule(
        _MEGATRON + "self_attention.linear_qkv.weight",
        (_HF + "self_attn.q_proj.weight", _HF + "self_attn.k_proj.weight", _HF + "self_attn.v_proj.weight"),
        Join.QKV,
    ),
    Rule(
        _MEGATRON + "self_attention.linear_qkv.bias",
        (_HF + "self_attn.q_proj.bias", _HF + "self_attn.k_proj.bias", _HF + "self_attn.v_proj.bias"),
        Join.QKV,
        applies=lambda shape: shape.qkv_bias,
    ),
    _norm_rule("q", "full", Join.HEADS),
    _norm_rule("k", "full", Join.KV_HEADS),
    _norm_rule("q", "per_head", Join.REPLICATED),
    _norm_rule("k", "per_head", Join.REPLICATED),
    Rule(_MEGATRON + "self_attention.linear_proj.weight", (_HF + "self_attn.o_proj.weight",), Join.HEAD_COLUMNS),
    Rule(_MEGATRON + "pre_mlp_layernorm.weight", (_HF + "post_attention_layernorm.weight",), Join.REPLICATED),
    Rule(
        _MEGATRON + "mlp.linear_fc1.weight",
        (_HF + "mlp.gate_proj.weight", _HF + "mlp.up_proj.weight"),
        Join.GATE_UP,
    ),
    Rule(_MEGATRON + "mlp.linear_fc2.weight", (_HF + "mlp.down_proj.weight",), Join.FFN_COLUMNS),
    Rule("decoder.final_layernorm.weight", ("model.norm.weight",), Join.REPLICATED),
    Rule("output_layer.weight", ("lm_head.weight",), Join.VOCABULARY, applies=lambda shape: not shape.tied),
)


def rules(shape: ModelShape) -> Iterator[Rule]:
    """Every tensor of a model of this shape, with its layer number filled in; layer by layer, as checkpoints store."""
    selected = [rule for rule in DECODER if rule.applies(shape)]
    first = next(index for index, rule in enumerate(selected) if "{}" in rule.target)
    in_layers = [rule for rule in selected if "{}" in rule.target]
    yield from selected[:first]
    for layer in range(shape.layers):
        for rule in in_layers:
            yield replace(rule, target=rule.target.format(layer), sources=tuple(n.format(layer) for n in rule.sources))
    yield from selected[first + len(in_layers) :]


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
        "q_proj.bias": (q,),
        "k_proj.bias": (kv,),
        "v_proj.bias": (kv,),
        "q_norm.weight": (q if shape.q_norm == "full" else shape.head_dim,),
        "k_norm.weight": (kv if shape.k_norm == "full" else shape.head_dim,),
        "norm.weight": (shape.hidden,),
    }

    def of(name: str) -> tuple[int, ...]:
        return next(size for suffix, size in by_suffix.items() if name.endswith(suffix))

    return {name: of(name) for rule in rules(shape) for name in rule.sources}
