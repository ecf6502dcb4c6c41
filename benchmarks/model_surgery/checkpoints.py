"""Random checkpoints of published shapes, in files as Hugging Face has them."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from model_surgery.architectures import source_shapes
from model_surgery.shape import ModelShape

SHARD_BYTES = 5 * 10**9
_BLOCK = 2**25


def make(folder: Path, shape: ModelShape, seed: int = 0) -> None:
    """Writes config.json and weights in `shape.dtype`, in files of at most 5 GB with an index.

    Numbers are random and finite, but not all different: every tensor begins somewhere else in the same 32 Mi of them
    and goes round, which is as fast as the disk.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))
    dtype = getattr(torch, shape.dtype)
    numbers = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed)).mul_(0.02).to(dtype)
    begins = random.Random(seed)
    shards = list(_shards(source_shapes(shape), dtype.itemsize))
    weight_map = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _numbers(numbers, size, begins) for name, size in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": shape.parameters * dtype.itemsize}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def config(shape: ModelShape) -> dict[str, object]:
    """config.json of a model of this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": shape.model_type,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": shape.dtype,
    }


def _shards(shapes: dict[str, tuple[int, ...]], itemsize: int) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    filled = 0
    for name, size in shapes.items():
        expected = math.prod(size) * itemsize
        if shard and filled + expected > SHARD_BYTES:
            yield shard
            shard, filled = {}, 0
        shard[name] = size
        filled += expected
    yield shard


def _numbers(numbers: torch.Tensor, size: tuple[int, ...], begins: random.Random) -> torch.Tensor:
    count, begin = math.prod(size), begins.randrange(len(numbers))
    rounds = -(-(begin + count) // len(numbers))
    return numbers.repeat(rounds)[begin : begin + count].reshape(size).clone()
