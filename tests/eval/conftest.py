"""Real inputs for the evaluation's tests: the shared checkpoint, its DroPE form, its text as Megatron shards."""

import json
import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy
import torch

torch.set_num_threads(1)

from eval.models import Models  # noqa: E402


@pytest.fixture(scope="session")
def shared(shared_data: Path) -> Path:
    return shared_data


@pytest.fixture(scope="session")
def source(shared: Path) -> Path:
    return shared / "models" / "tinystories-656k"


@pytest.fixture(scope="session")
def drope(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source with RoPE dropped and no training, as the export writes it."""
    from transformers import LlamaForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

    llama = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    old = llama.config
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    same += ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "bos_token_id", "eos_token_id")
    config = SmolLM3Config(
        **{name: getattr(old, name) for name in same},
        pad_token_id=0,
        tie_word_embeddings=True,
        no_rope_layers=[0] * old.num_hidden_layers,
    )
    model = SmolLM3ForCausalLM(config)
    model.load_state_dict(llama.state_dict())
    folder = tmp_path_factory.mktemp("drope")
    model.save_pretrained(folder)
    return folder


def write_shard(prefix: Path, documents: list[list[int]]) -> Path:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.fixture(scope="session")
def documents(shared: Path, source: Path) -> list[list[int]]:
    """TinyStories' validation stories as tokens, each with BOS before and EOS after."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    lines = (shared / "text" / "tinystories-validation.jsonl").read_text().splitlines()
    return [[*tokenizer.encode(json.loads(line)["text"]), tokenizer.eos_token_id] for line in lines]


@pytest.fixture(scope="session")
def validation(documents: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("validation") / "stories", documents)


@pytest.fixture(scope="session")
def models(source: Path, drope: Path, validation: Path) -> Models:
    return Models(source=source, drope=drope, control=None, tokenizer=source, validation=(validation,))
