"""A Llama whose weights are written down: two induction heads' worth of attention, nothing learnt.

Layer 0 looks one token back, which RoPE alone makes possible: queries and keys are the same for every token, and their
phases are such that the rotation lets them agree at a distance of 1. Layer 1 looks for where the current token stood
before, by what layer 0 wrote, and copies what came next (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"). With RoPE it repeats a sequence at any length; without, layer 0 sees all tokens alike, and it does not.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCAB, HIDDEN, HEAD_DIM, CODE = 2000, 320, 128, 96
_THETA = 1e30
"""Only the first few pairs of a head turn within a few hundred tokens: they tell distances, the others carry codes."""
_TURNING = 4
_NOW, _BEFORE, _NEXT, _ONE = 0, CODE, 2 * CODE, 3 * CODE  # where the hidden state holds what


def write_induction_model(folder: Path) -> Path:
    """Two layers of two heads of which the second is zero; feed-forwards of zeros; context 32."""
    codes = torch.randint(2, (VOCAB, CODE), generator=torch.Generator().manual_seed(0)).sub(0.5).mul(2 / CODE**0.5)
    half = HEAD_DIM // 2
    still = torch.tensor([*range(_TURNING + 3, half), *range(half + _TURNING + 3, HEAD_DIM)])[:CODE]
    turns = torch.tensor(_THETA) ** (-torch.arange(_TURNING) / half)
    cells, norms = torch.arange(CODE), [(HIDDEN / square) ** 0.5 for square in (2, 3, 4)]
    empty = {"q": (2 * HEAD_DIM, HIDDEN), "k": (2 * HEAD_DIM, HIDDEN), "v": (2 * HEAD_DIM, HIDDEN)}
    look_back, repeat = ({part: torch.zeros(shape) for part, shape in empty.items()} for _ in range(2))
    look_back["q"][:_TURNING, _ONE] = 1.7
    look_back["k"][:_TURNING, _ONE] = 1.7 * turns.cos()
    look_back["k"][half : half + _TURNING, _ONE] = 1.7 * turns.sin()
    repeat["q"][still, _NOW + cells] = repeat["k"][still, _BEFORE + cells] = 2.5
    tensors = {"model.embed_tokens.weight": torch.zeros(VOCAB, HIDDEN), "lm_head.weight": torch.zeros(VOCAB, HIDDEN)}
    tensors["model.embed_tokens.weight"][:, _NOW : _NOW + CODE] = codes
    tensors["model.embed_tokens.weight"][:, _ONE] = 1.0
    tensors["lm_head.weight"][:, _NEXT : _NEXT + CODE] = 4.0 * codes
    for layer, (parts, to) in enumerate(((look_back, _BEFORE), (repeat, _NEXT))):
        parts["v"][cells, _NOW + cells] = 1.0
        parts["o"] = torch.zeros(HIDDEN, 2 * HEAD_DIM)
        parts["o"][to + cells, cells] = 1 / norms[layer]
        name = f"model.layers.{layer}."
        tensors |= {f"{name}self_attn.{part}_proj.weight": weight for part, weight in parts.items()}
        tensors |= {f"{name}mlp.{part}_proj.weight": torch.zeros(4, HIDDEN) for part in ("gate", "up")}
        tensors[f"{name}mlp.down_proj.weight"] = torch.zeros(HIDDEN, 4)
        tensors |= {f"{name}{norm}_layernorm.weight": torch.ones(HIDDEN) for norm in ("input", "post_attention")}
    tensors["model.norm.weight"] = torch.ones(HIDDEN)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": _THETA},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
