"""What positions do to attention, measured: positional bias, prefix spread, gradients of queries and keys.

Definitions and claims of Gelberg et al. 2025 (arXiv:2512.12167, section 3). With centred weights c (sum over j <= i of
c_ij = 0 for every i) an attention head has the positional bias A = 1/T sum_i sum_{j<=i} c_ij alpha_ij. On a constant
sequence a model without positional embeddings attends uniformly, so A and its gradients are zero (proposition 3.2);
with RoPE they are not (3.3). Where embeddings spread by no more than epsilon around their prefix means, a model without
positional embeddings keeps spread, bias and gradients of the order of epsilon (theorem 3.4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from eval.errors import EvaluationError
from eval.models import read_config
from model_surgery.rotation import IDENTITY_ROTATION

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Bias = Literal["diagonal", "previous"]
BIASES: tuple[Bias, ...] = get_args(Bias)
EPSILONS = tuple(float(epsilon) for epsilon in np.geomspace(1e-4, 1e-1, 7))


@dataclass(frozen=True)
class LayerProbe:
    """One layer of a model on one sequence.

    prefix_spread: of the states that go into the layer, as a share of their mean norm. By bias: bias is the mean over
    heads of |A|, query_grad and key_grad the root mean square over heads of the norm of A's gradient with respect to
    the layer's query and key weights.
    """

    layer: int
    prefix_spread: float
    bias: dict[Bias, float]
    query_grad: dict[Bias, float]
    key_grad: dict[Bias, float]


def centred_weights(kind: Bias, length: int) -> Tensor:
    """[length, length], zero above the diagonal, rows that sum to zero: mass on the token itself, or on the one before.

    c_ij = [j is that token] - 1 / i (i from 1); a token without a predecessor has none.
    """
    weights = torch.eye(length, dtype=torch.float64)
    if kind == "previous":
        weights = torch.diag(torch.ones(length - 1, dtype=torch.float64), -1)
    share = 1 / torch.arange(1, length + 1, dtype=torch.float64)
    return weights - weights.sum(1, keepdim=True) * share[:, None] * torch.ones(length, length).tril()


def positional_bias(attention: Tensor, weights: Tensor) -> Tensor:
    """A of every head: [heads] from attention probabilities [heads, length, length]."""
    return (attention * weights.to(attention)).sum((-2, -1)) / attention.shape[-1]


def prefix_spread(states: Tensor) -> float:
    """max over j <= i of |h_j - mean of h_1 .. h_i|, over the mean norm of the states [length, hidden]."""
    counts = torch.arange(1, len(states) + 1, dtype=states.dtype, device=states.device)
    means = states.cumsum(0) / counts[:, None]
    distances = torch.cdist(means, states).tril()
    return float(distances.max() / states.norm(dim=1).mean())


def probe(model: "PreTrainedModel", embeddings: Tensor) -> list[LayerProbe]:
    """Every layer of `model` on one sequence of input embeddings [length, hidden]; nothing of the model is changed.

    Raises: EvaluationError if the model does not give its attention.
    """
    weights = {kind: centred_weights(kind, len(embeddings)) for kind in BIASES}
    decoder: Any = model.model
    states = decoder(
        inputs_embeds=embeddings.to(model.dtype)[None],
        output_attentions=True,
        output_hidden_states=True,
        use_cache=False,
    )
    if not states.attentions or states.attentions[0] is None:
        raise EvaluationError(f"{type(model).__name__} does not give its attention; probe a model of another class")
    probes = []
    for number, (layer, attention) in enumerate(zip(decoder.layers, states.attentions, strict=True)):
        biases = {kind: positional_bias(attention[0], weights[kind]) for kind in BIASES}
        parameters = [layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight]
        heads = len(attention[0])
        norms = {
            kind: [
                float(grad.norm()) / math.sqrt(heads)
                for grad in torch.autograd.grad(bias.sum(), parameters, retain_graph=True)
            ]
            for kind, bias in biases.items()
        }
        probes.append(
            LayerProbe(
                layer=number,
                prefix_spread=prefix_spread(states.hidden_states[number][0].detach()),
                bias={kind: float(bias.detach().abs().mean()) for kind, bias in biases.items()},
                query_grad={kind: norm[0] for kind, norm in norms.items()},
                key_grad={kind: norm[1] for kind, norm in norms.items()},
            )
        )
    return probes


def constant(model: "PreTrainedModel", token: int, length: int) -> Tensor:
    """Input embeddings [length, hidden] of one token, again and again."""
    return embedded(model, [token]).expand(length, -1)


def embedded(model: "PreTrainedModel", tokens: Sequence[int]) -> Tensor:
    """Input embeddings [length, hidden] of tokens."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight.detach()[torch.tensor([*tokens])]


def perturbed(embeddings: Tensor, epsilon: float, seed: int) -> Tensor:
    """Each token's embedding moved by epsilon times its norm, in a random direction."""
    draw = torch.Generator().manual_seed(seed)
    direction = torch.randn(embeddings.shape, generator=draw, dtype=torch.float64).to(embeddings)
    direction = direction / direction.norm(dim=1, keepdim=True)
    return embeddings + epsilon * embeddings.norm(dim=1, keepdim=True) * direction


def slope(epsilons: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of values ~ epsilon^p: 1 where they are of the order of epsilon, 0 where they do not depend on it.

    By least squares on the logarithms.
    """
    return float(np.polyfit(np.log(epsilons), np.log(values), 1)[0])


def load_model(folder: Path, *, rope: bool, seed: int | None, dtype: torch.dtype = torch.float64) -> "PreTrainedModel":
    """The model of a folder for probing: with its RoPE as the config says or without, weights trained or drawn anew.

    seed: of weights at initialisation; None for the trained ones.

    Raises: EvaluationError where the folder holds no model that can be read.
    """
    from transformers import AutoModelForCausalLM

    config = read_config(folder)
    if not rope:
        config = without_rope(config)
    if seed is None:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            weights_only=True,
            attn_implementation="eager",
            dtype=dtype,
        ).eval()
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()


def without_rope(config: "PretrainedConfig") -> "PretrainedConfig":
    """The config of the same model with a rotation that is none; one that has no RoPE is left as it is."""
    import copy

    changed = copy.deepcopy(config)
    if getattr(config, "rope_parameters", None):
        theta = config.rope_parameters.get("rope_theta", 1e4)
        changed.rope_parameters = {**IDENTITY_ROTATION, "rope_theta": theta}
    return changed
