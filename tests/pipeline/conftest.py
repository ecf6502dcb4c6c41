"""Recipes on the tiny model, and the command line as a user's shell calls it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Drope = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def drope() -> Drope:
    """Runs the `drope` command in a process of its own."""

    def call(*arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)

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
        "evaluation": {"variants": ["rope", "drope"], "lengths": [1, 2], "loss": {"tokens": 256}},
    }


@pytest.fixture
def write_recipe(raw_recipe: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny recipe, with its runs under tmp_path/runs; keyword arguments replace whole sections."""

    def write(**sections: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**raw_recipe, "runs_dir": str(tmp_path / "runs"), **sections}))
        return path

    return write
