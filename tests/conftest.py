"""A tiny random Llama checkpoint with a word-level tokenizer, documents in its words; real models and real text."""

import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import skip_list
from tests.forked import Starter
from tests.forked.spawned import fork_spawned
from tests.real_data import (  # noqa: F401
    extra_data,
    extra_or_none,
    real_texts,
    small_llama,
    small_model,
    smollm2,
    smollm2_two_layers,
    stories,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

WORDS = [f"w{number}" for number in range(94)]


def pytest_addoption(parser: pytest.Parser) -> None:
    skip_list.add_option(parser)
    parser.addoption(
        "--fork", action="store_true", help="processes of tests are forked from one that has imported (tests/forked)"
    )
    parser.addoption(
        "--kills", type=int, metavar="N", help="kill trainings of every kind, N times each (tests/.../test_kills.py)"
    )


STARTER = pytest.StashKey[Starter]()


def pytest_configure(config: pytest.Config) -> None:
    starter = config.stash[STARTER] = Starter()
    fork_spawned(starter)
    skip_list.register(config)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """With --fork processes are forked, but for tests marked `real_processes` and the fixtures made for them."""
    marked = item.get_closest_marker("real_processes") is not None
    item.config.stash[STARTER].begin(real=marked or not item.config.getoption("--fork"))


@pytest.fixture(scope="session")
def starter(pytestconfig: pytest.Config) -> Starter:
    """Starts commands: forked, or as real processes."""
    return pytestconfig.stash[STARTER]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the trial cluster is long.

    Files with the most slow tests come first, so that two workers, which take whole files, end together.
    """
    for item in items:
        if "running_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("long")
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: slow[item.path], reverse=True)


def write_model(folder: Path, model_type: str = "llama", **sizes: object) -> Path:
    """A random Llama or Qwen2 (4 query heads, 2 KV heads, 2 layers, vocabulary 96) with a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "<eos>", *WORDS])}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>").save_pretrained(folder)
    settings: dict[str, object] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": 1,
        "rms_norm_eps": 1e-5,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(settings | sizes)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms of ones, and biases of zeros, would hide one that is not loaded
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", name="write_model")
def _write_model() -> Callable[..., Path]:
    """The function that writes a random tiny Llama or Qwen2 into a folder; keyword arguments change its config."""
    return write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def odd_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 query and 3 KV heads, feed-forward 67, 97 ids: nothing divides by 2 or 4."""
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48}
    return write_model(tmp_path_factory.mktemp("odd-model"), vocab_size=97, intermediate_size=67, **sizes)


@pytest.fixture(scope="session")
def qwen2_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Qwen2 with 3 KV heads of 2 query heads each, and biases on q, k and v."""
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48, "tie_word_embeddings": True}
    return write_model(tmp_path_factory.mktemp("qwen2-model"), "qwen2", **sizes)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 documents of 10 to 60 words in one JSONL file."""
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    draw = random.Random(0)
    lines = [{"text": " ".join(draw.choices(WORDS, k=draw.randint(10, 60)))} for _ in range(400)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_split(prefix: Path, documents: list[list[int]], shards: int = 1, vocab_size: int = 1000):
    """The split of these documents, cut into up to `shards` shards of about equally many."""
    import numpy

    from data_prep.artifact import Shard, Split
    from data_prep.shards import ShardWriter

    prefix.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for number, chosen in enumerate(numpy.array_split(numpy.arange(len(documents)), shards)):
        path = prefix.with_name(f"{prefix.name}-{number}")
        lengths = numpy.array([len(documents[index]) for index in chosen], dtype=numpy.int64)
        ids = numpy.array([token for index in chosen for token in documents[index]], dtype=numpy.uint32)
        with ShardWriter(path, vocab_size) as writer:
            writer.add(ids, lengths)
        if writer.documents:
            counts = {"documents": writer.documents, "tokens": writer.tokens}
            written.append(Shard(prefix=path.name, digest=writer.digest, **counts))
    return Split(shards=tuple(written))


def write_shards(
    folder: Path,
    *sources: tuple[float, list[list[int]], list[list[int]]],
    shards: int = 1,
    vocab_size: int = 1000,
    eos_id: int = 0,
    row_length: int = 32,
    seed: int = 1234,
    tokenizer: str = "none",
):
    """A set of shards of the sources (weight, documents to train on, held-out documents), without preparing data."""
    from data_prep.artifact import Counts, ShardSet, SourceShards, set_digest
    from data_prep.shards import token_type

    made = []
    for number, (weight, train, held) in enumerate(sources):
        kept = len(train) + len(held)
        source = SourceShards(
            name=str(number),
            source=str(number),
            weight=weight,
            counts=Counts(documents=kept, kept=kept, empty=0, rejected=0),
            bytes_per_token=4.0,
            eos_tokens=kept,
            lengths=(),
            train=write_split(folder / f"{number}-train", train, shards, vocab_size),
            validation=write_split(folder / f"{number}-validation", held, shards, vocab_size),
        )
        made.append(source)
    shard_set = ShardSet(
        tokenizer=tokenizer,
        tokenizer_digest="",
        vocab_size=vocab_size,
        eos_id=eos_id,
        dtype=token_type(vocab_size),
        row_length=row_length,
        seed=seed,
        settings_digest="",
        digest=set_digest(tuple(made)),
        sources=tuple(made),
    )
    shard_set.save(folder)
    return shard_set


@pytest.fixture(scope="session", name="write_split")
def _write_split() -> Callable[..., Any]:
    """The function that writes documents (lists of token ids) as a split; returns the Split."""
    return write_split


@pytest.fixture(scope="session", name="write_shards")
def _write_shards() -> Callable[..., Any]:
    """The function that writes documents (lists of token ids) as a set of shards; returns the ShardSet."""
    return write_shards


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB, or of the size given as an indirect parameter; the tiny model's weights take 87 kB."""
    if os.geteuid() != 0:
        pytest.skip("a small file system can only be mounted by root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={getattr(request, 'param', '100k')}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mount is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Any]:
    """A real SLURM of three nodes on this machine (tests.slurm.trial_cluster.TrialCluster)."""
    from tests.slurm import trial_cluster

    if reason := trial_cluster.reason_against():
        pytest.skip(reason)
    cluster = trial_cluster.start()
    yield cluster
    trial_cluster.stop(cluster)


@pytest.fixture
def cluster(running_cluster: Any) -> Iterator[Any]:
    """That cluster, without jobs and with all of its nodes, also after the test."""
    yield running_cluster
    running_cluster.cancel_all()
