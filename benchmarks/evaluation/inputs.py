"""Models, held-out text and needle samples for the ways."""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.config import NiahConfig
from eval.digests import digest_text
from eval.models import load_tokenizer, tokenizer_digest
from eval.tasks.niah.files import load_or_draw
from eval.tasks.niah.tasks import TASKS
from eval.tasks.niah.words import read_essays

MODELS: dict[str, dict[str, int]] = {
    "tinystories-656k": {},
    "llama-58m": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
"""The real one, and one of random weights with the same tokenizer and context."""


@dataclass(frozen=True)
class Inputs:
    """A model's folder, its held-out shard, the recipe's evaluation section, and the samples' length in tokens."""

    source: Path
    validation: Path
    config: dict[str, Any]
    factor: int
    length: int


def make(model: str, arguments: argparse.Namespace, folder: Path) -> Inputs:
    """Writes all inputs below `folder`; samples go where the evaluation looks for them."""
    from transformers import AutoConfig

    source = write_model(model, arguments.data / "models/tinystories-656k", folder / "model")
    context = AutoConfig.from_pretrained(source).max_position_embeddings
    tokenizer = load_tokenizer(source)
    length = arguments.factor * context
    validation = write_shard(tokenizer, arguments.data / "text/tinystories-validation.jsonl", folder / "text", length)
    essays_file = arguments.data / "text/wikitext2-test.txt"
    niah = {"samples": arguments.samples, "essays": str(essays_file), "context_factors": [arguments.factor]}
    config = {
        "variants": ["rope"],
        "context_factors": [1],
        "loss": {"tokens": context},
        "niah": niah,
        "device": "cpu",
        "batch_tokens": 4096,
    }
    essays = read_essays(essays_file)
    for name in arguments.tasks:
        digests = {"tokenizer": tokenizer_digest(source)}
        digests |= {"essays": digest_text("\n".join(essays))} if TASKS[name].haystack == "essays" else {}
        load_or_draw(
            name,
            NiahConfig(**niah),
            essays,
            tokenizer.encode,
            factor=arguments.factor,
            length=length,
            seed=0,
            digests=digests,
            out_dir=folder / "out",
        )
    return Inputs(source, validation, config, arguments.factor, length)


def write_model(model: str, real: Path, folder: Path) -> Path:
    """The real checkpoint, or one of another shape drawn from a seed, told that it reads as long as is wanted."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(real, folder)
    if shape := MODELS[model]:
        torch.manual_seed(0)
        config = LlamaConfig.from_pretrained(real, **shape)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_shard(tokenizer: Any, text: Path, prefix: Path, tokens: int) -> Path:
    """Held-out text of more than `tokens` tokens, which the evaluation wants even where only needles count."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder, written = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16), 0
    for line in text.read_text(encoding="utf-8").splitlines():
        ids = tokenizer.encode(json.loads(line)["text"])
        builder.add_document(torch.tensor(ids), [len(ids)])
        written += len(ids)
        if written > tokens:
            break
    builder.finalize(f"{prefix}.idx")
    return prefix
