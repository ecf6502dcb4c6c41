"""Which files of a Hub repository are fetched; a function that makes empty files stands for the Hub."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.recipe import ModelConfig


@pytest.mark.parametrize(
    ("repository", "seed", "fetched"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], None, ["config.json", "model.safetensors"]),
        (
            ["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "training_args.bin"],
            None,
            ["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
        ),
        (["config.json", "tokenizer.json", "model.safetensors"], 0, ["config.json", "tokenizer.json"]),
        (["config.json", "merges.txt", "pytorch_model.bin"], 0, ["config.json", "merges.txt"]),
    ],
)
def test_only_the_files_that_are_needed_are_fetched(
    repository: list[str], seed: int | None, fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's weights only where there are no others, and none where they are drawn."""

    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert repo_id == "owner/name"
        for name in repository:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model(ModelConfig(path="owner/name", random_seed=seed)) == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == fetched
