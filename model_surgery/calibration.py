"""Weights of an inserted QK-norm with which the attention logits keep their scale.

A norm of weight one changes the size of all queries and keys, and with it how sharp the softmax is. Softmax sees only
how far the logits of one query lie apart, so the scale of a layer is taken as their spread

    sigma = sqrt(mean over queries and heads of Var over the keys that the query sees of q.k / sqrt(head_dim))

once as the model is without the norm (sigma) and once with a norm of ones (sigma_1), on real rows, without PE. All
weights of both norms of the layer are then g = sqrt(sigma / sigma_1): the logits are scaled by g^2, their spread is
sigma again.

The model is run layer by layer, one layer in memory at a time.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from model_surgery.checkpoint import Checkpoint
from model_surgery.qk_norm import initial_norms
from model_surgery.shape import NORM_PARTS, ModelShape, NormPart
from model_surgery.verification.reference import NormHook, load_layer, model_of_layers, norm_hook, norm_name

DecoderLayer = Any
"""A LlamaDecoderLayer or Qwen2DecoderLayer of transformers, which have no common class."""

_QUERIES = 256
"""Of every row so many queries, evenly spaced, are measured."""


@dataclass(frozen=True)
class Calibration:
    """Weights by Hugging Face name, g by layer, and the rows' loss before training (nats per token) with each norm."""

    norms: dict[str, Tensor]
    gains: tuple[float, ...]
    tokens: int
    loss_without_norm: float
    loss_with_ones: float
    loss_calibrated: float

    def facts(self) -> dict[str, object]:
        """The numbers for a manifest."""
        return {key: value for key, value in asdict(self).items() if key != "norms"}


def calibrate(source: Path, shape: ModelShape, target: ModelShape, rows: Tensor) -> Calibration:
    """Measures the norms that `target` has and the source of `shape` has not, on `rows` of token ids [rows, length]."""
    norms, gains = initial_norms(shape, target), []
    ones = {part: norm_hook(torch.ones(target.norm_width(part)), target) for part in NORM_PARTS}
    with Checkpoint(source) as checkpoint, torch.inference_mode():
        model: Any = model_of_layers(source, shape, [0], identity_rotation=True)
        layer = model.model.layers[0]
        start = model.model.embed_tokens(rows)
        rotation = model.model.rotary_emb(start, torch.arange(rows.shape[1]).unsqueeze(0))
        states = dict.fromkeys(("none", "ones", "calibrated"), start)
        for number in tqdm(range(shape.layers), desc="calibration", unit="layer", disable=None):
            load_layer(layer, checkpoint, number)
            queries, keys = projected(layer, states["none"])
            spread_with_ones = spread(ones["q"](layer, (), queries), ones["k"](layer, (), keys), shape)
            gain = (spread(queries, keys, shape) / spread_with_ones).sqrt()
            for part in NORM_PARTS:
                norms[norm_name(number, part)].fill_(gain)
            # With the weight that is stored, in the source's dtype.
            calibrated = {part: norm_hook(norms[norm_name(number, part)].float(), target) for part in NORM_PARTS}
            states = {
                "none": run_layer(layer, states["none"], rotation),
                "ones": run_layer(layer, states["ones"], rotation, ones),
                "calibrated": run_layer(layer, states["calibrated"], rotation, calibrated),
            }
            gains.append(gain.item())
        losses = {name: row_loss(model, state, rows) for name, state in states.items()}
    return Calibration(norms, tuple(gains), rows.numel(), losses["none"], losses["ones"], losses["calibrated"])


def projected(layer: DecoderLayer, states: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [rows, length, heads * head_dim] that a layer makes of its input."""
    normed = layer.input_layernorm(states)
    return layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)


def spread(queries: Tensor, keys: Tensor, shape: ModelShape) -> Tensor:
    """sigma of this module's formula; queries and keys [rows, length, heads * head_dim]."""
    length = queries.shape[1]
    chosen = torch.linspace(0, length - 1, min(length, _QUERIES)).long()
    seen = torch.arange(length) <= chosen.unsqueeze(1)  # [queries, keys]
    q = queries[:, chosen].unflatten(-1, (shape.kv_heads, -1, shape.head_dim))
    k = keys.unflatten(-1, (shape.kv_heads, shape.head_dim))
    variances = []
    for row_q, row_k in zip(q, k, strict=True):
        logits = torch.einsum("ighd,kgd->ghik", row_q, row_k) / shape.head_dim**0.5
        count = seen.sum(-1)
        mean = (logits * seen).sum(-1) / count
        variances.append((((logits - mean.unsqueeze(-1)) * seen).square().sum(-1) / count).mean())
    return torch.stack(variances).mean().sqrt()


def run_layer(
    layer: DecoderLayer,
    states: Tensor,
    rotation: tuple[Tensor, Tensor],
    norms: Mapping[NormPart, NormHook] = MappingProxyType({}),
) -> Tensor:
    """One decoder layer, causal, row by row; with norms on its queries and keys where they are given."""
    hooks = [getattr(layer.self_attn, f"{part}_proj").register_forward_hook(norm) for part, norm in norms.items()]
    try:
        return torch.cat([layer(row, position_embeddings=rotation) for row in states.split(1)])
    finally:
        for hook in hooks:
            hook.remove()


def row_loss(model: Any, states: Tensor, rows: Tensor) -> float:
    """Mean loss of the rows' tokens but the first, nats."""
    losses = []
    for state, row in zip(states, rows, strict=True):
        logits = model.lm_head(model.model.norm(state))
        losses.append(cross_entropy(logits[:-1].float(), row[1:]))
    return torch.stack(losses).mean().item()
