"""Inputs for the evaluation's tests: a small model, its DroPE form, real text as Megatron shards and as tasks."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy
import torch

torch.set_num_threads(1)

from eval.models import Models  # noqa: E402


@pytest.fixture(scope="session")
def source(small_model: Path) -> Path:
    return small_model


def write_drope(source: Path, folder: Path) -> Path:
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
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def drope(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drope(source, tmp_path_factory.mktemp("drope"))


@pytest.fixture(scope="session", name="write_drope")
def _write_drope() -> Callable[[Path, Path], Path]:
    """The function that writes a Llama without RoPE, otherwise as it is, into a folder."""
    return write_drope


def write_shard(prefix: Path, documents: list[list[int]]) -> Path:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.fixture(scope="session")
def documents(source: Path, stories: list[str]) -> list[list[int]]:
    """Real texts as tokens, each with BOS before and EOS after."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    return [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in stories[400:]]


@pytest.fixture(scope="session")
def trained_models(extra_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Models:
    """TinyStories-656K, its DroPE form and its own text: for what only holds of a model that has learned something."""
    from transformers import AutoTokenizer

    source, text = extra_data("models/tinystories-656k"), extra_data("text/tinystories-validation.jsonl")
    tokenizer, folder = AutoTokenizer.from_pretrained(source), tmp_path_factory.mktemp("trained")
    stories = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    prefix = write_shard(folder / "stories", [[*tokenizer.encode(story), tokenizer.eos_token_id] for story in stories])
    drope = write_drope(source, folder / "drope")
    return Models(source=source, drope=drope, control=None, tokenizer=source, validation=(prefix,))


@pytest.fixture(scope="session")
def benchmarks(
    real_texts: list[str], extra_or_none: Callable[[str], Path | None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """arc_easy.jsonl and winogrande.jsonl, the real ones where they are there.

    Else: which second half of a sentence follows the first, and which first half came.
    """
    if (folder := extra_or_none("benchmarks")) is not None:
        return folder
    sentences = [text.split("\n\n")[0].replace("\n", " ") for text in real_texts]
    halves = [(words[:5], words[5:15]) for words in (sentence.split() for sentence in sentences) if len(words) >= 8]
    beginnings, ends = ([" ".join(half) for half in column] for column in zip(*halves, strict=True))
    folder, items = tmp_path_factory.mktemp("benchmarks"), {"arc_easy": [], "winogrande": []}
    for number in range(60):
        others = [(number + 7 * step) % len(halves) for step in range(4)]
        order = [*others[1 : 1 + number % 4], number, *others[1 + number % 4 :]]
        gold = order.index(number)
        items["arc_easy"].append(
            {"query": f"Question: {beginnings[number]}", "choices": [ends[i] for i in order], "gold": gold}
        )
        two = [beginnings[number], beginnings[others[1]]][:: 1 - 2 * (number % 2)]
        item = {"context_options": two, "continuation": ends[number], "gold": number % 2}
        items["winogrande"].append(item)
    for name, lines in items.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def validation(documents: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("validation") / "stories", documents)


@pytest.fixture(scope="session")
def models(source: Path, drope: Path, validation: Path) -> Models:
    return Models(source=source, drope=drope, control=None, tokenizer=source, validation=(validation,))
