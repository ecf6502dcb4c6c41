"""The demo's inputs: deterministic, in the model's vocabulary, and true to what they claim."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from pipeline.demo.corpus import FOODS, NAMES, document, documents, write_parquet
from pipeline.demo.run import MODEL, prepare_demo
from pipeline.demo.start import CONTEXT, vocabulary, write_random_model
from pipeline.recipe.recipe import load_recipe


def test_every_statement_of_a_document_agrees() -> None:
    for seed in range(20):
        words = document(random.Random(seed)).split()
        likes: dict[str, str] = {}
        for name, food in zip(words[::2], words[1::2], strict=False):
            assert name in NAMES and food in FOODS
            assert likes.setdefault(name, food) == food


def test_documents_depend_on_the_seed_alone() -> None:
    assert list(documents(1, 5000)) == list(documents(1, 5000))
    assert list(documents(1, 5000)) != list(documents(2, 5000))
    assert sum(len(text.split()) + 1 for text in documents(1, 5000)) >= 5000


def test_parquet_is_byte_identical_and_reads_back(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_parquet(tmp_path / f"{name}.parquet", seed=3, tokens=4000)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.column("text").to_pylist() == list(documents(3, 4000))


def test_names_foods_and_tokens_are_distinct() -> None:
    assert len(vocabulary()) == 2 + len(NAMES) + len(FOODS)


def test_random_model_depends_on_the_seed_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_random_model(tmp_path / name)
    write_random_model(tmp_path / "c", seed=2)
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert one == same != other


def test_the_shipped_checkpoint_is_small_and_loads_with_its_tokenizer() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert (sum(path.stat().st_size for path in MODEL.glob("*.safetensors"))) <= 4 << 20
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    assert model.config.max_position_embeddings == CONTEXT
    ids = tokenizer("anna mango ben figs carla kale david jam anna", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == ids[0, -1] == vocabulary()["anna"]
    with torch.inference_mode():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == "mango"


@pytest.mark.parametrize("pretrain", [False, True])
def test_prepared_inputs_make_a_valid_plan(
    pretrain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drope: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, given = prepare_demo((), pretrain=pretrain)
    result = drope("plan", recipe, *given)
    assert result.returncode == 0, result.stderr
    tokens = load_recipe(recipe, given).recalibration.tokens
    texts = pyarrow.parquet.read_table(tmp_path / f"runs/demo-inputs/{recipe.stem}.parquet").column("text")
    assert sum(len(text.as_py().split()) + 1 for text in texts) >= tokens  # no token is trained on twice
