"""Recipes on the tiny model, and the command line as a user's shell calls it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.forked import Starter

Drope = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def _fork_ranks(starter: Starter) -> None:
    """torchrun is started as commands are."""
    from pipeline.launch import processes

    processes.subprocess = starter


@pytest.fixture(scope="session")
def drope(starter: Starter) -> Drope:
    """Runs the `drope` command in a process of its own."""

    def call(*arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
        return starter.run(command, timeout=timeout, **options)

    return call


@pytest.fixture(scope="session")
def raw_recipe(tiny_model: Path, documents: Path) -> dict[str, Any]:
    """A recipe that runs through every stage in about a minute: 12 steps on the tiny model at TP 2."""
    return {
        "name": "tiny",
        "model": {"path": str(tiny_model)},
        "data": {"sources": [{"path": str(documents)}], "row_length": 32, "validation_fraction": 0.2},
        "surgery": {"tensor_parallel": 2, "verify_tokens": 32},
        "recalibration": {
            "tokens": 12 * 4 * 32,
            "batch": 4,
            "micro_batch": 2,
            "lr": 1e-3,
            "schedule": {"kind": "cosine", "warmup_steps": 2},
            "precision": "fp32",
            "checkpoint_every": 3,
            "validation_every": 6,
            "validation_rows": 8,
        },
        "evaluation": {"variants": ["rope", "drope"], "context_factors": [1, 2], "loss": {"tokens": 256}},
    }


@pytest.fixture
def write_recipe(raw_recipe: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny recipe, with its runs under tmp_path/runs; keyword arguments replace whole sections."""

    def write(**sections: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**raw_recipe, "runs_dir": str(tmp_path / "runs"), **sections}))
        return path

    return write


@pytest.fixture(scope="session")
def described_model(qwen2_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json and tokenizer of the tiny tied Qwen2 without its weights, and with a context of 131,072."""
    folder = tmp_path_factory.mktemp("described") / "tiny-qwen2"
    shutil.copytree(qwen2_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 131072}))
    return folder


@pytest.fixture
def write_scratch_recipe(
    write_recipe: Callable[..., Path], raw_recipe: dict[str, Any], described_model: Path
) -> Callable[..., Path]:
    """The paper's experiment from scratch in miniature: 12 steps on random weights, RoPE and no norm up to step 8."""

    def write(**sections: Any) -> Path:
        scratch = {
            "model": {"path": str(described_model), "random_seed": 0},
            "recalibration": raw_recipe["recalibration"] | {"drop_at_step": 8, "drop_qk_norm": "full"},
            "evaluation": raw_recipe["evaluation"] | {"variants": ["drope", "drope_scaled"]},
        }
        return write_recipe(**{**scratch, **sections})

    return write
