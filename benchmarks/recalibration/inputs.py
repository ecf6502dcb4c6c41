"""The same model and rows for both ways: a layout and shards for this project, a folder and an .npy for the Trainer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.recalibration.cases import Case
from data_prep import prepare
from data_prep.artifact import ShardSet
from data_prep.config import DataConfig
from data_prep.rows import build_rows
from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert

_LLAMA_58M = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Inputs:
    """What a case is trained from."""

    model: Path
    layout: Path
    shards: Path
    rows: Path


def make(case: Case, data: Path, folder: Path) -> Inputs:
    """Everything for a case in `folder`; what is there already is taken as it is."""
    model, tokenizer = model_folder(case, data, folder)
    layout, shards = folder / f"{case.model}-layout", folder / f"{case.model}-{case.length}-shards"
    if not layout.is_dir():
        convert(SurgeryConfig(), source=model, out_dir=layout)
    if not shards.is_dir():
        text = {"path": str(data / "text" / "tinystories-train.jsonl")}
        config = DataConfig.model_validate({"sources": [text], "row_length": case.length})
        vocab = LlamaConfig.from_pretrained(model).vocab_size
        prepare.run(config, tokenizer=tokenizer, model_vocab_size=vocab, out_dir=shards)
    rows = shards / f"rows-{case.steps * case.batch}.npy"
    if not rows.is_file():
        write_rows(shards, case.steps * case.batch, rows)
    return Inputs(model=model, layout=layout, shards=shards, rows=rows)


def model_folder(case: Case, data: Path, folder: Path) -> tuple[Path, Path]:
    """The Hugging Face folder of the case's model and its tokenizer; a random Llama is made once."""
    if case.model == "tinystories-656k":
        real = data / "models" / case.model
        return real, real / "tokenizer.json"
    made = folder / case.model
    if not made.is_dir():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**_LLAMA_58M)).save_pretrained(made)
    return made, data / "tokenizers" / "llama2" / "tokenizer.model"


def write_rows(shards: Path, count: int, path: Path) -> None:
    """The first `count` training rows as this project reads them, each with its last label: [rows, length + 1]."""
    sizes = {"train_rows": count, "validation_rows": 1, "cache_dir": shards / "row-index"}
    rows = build_rows(ShardSet.load(shards), shards, **sizes).train
    joined = [torch.cat([row["tokens"], row["labels"][-1:]]).numpy() for row in map(rows.__getitem__, range(count))]
    np.save(path, np.stack(joined).astype(np.uint16))
