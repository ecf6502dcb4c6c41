"""Which files of a Hub repository are fetched; a function that makes empty files stands for the Hub."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from pipeline.model_source import resolve_model
from pipeline.recipe import ModelConfig


@pytest.mark.parametrize(
    ("repository", "fetched"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
        (
            ["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "training_args.bin"],
            ["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
        ),
    ],
)
def test_files_of_torch_are_fetched_only_where_there_are_no_others(
    repository: list[str], fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert repo_id == "owner/name"
        for name in repository:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model(ModelConfig(path="owner/name")) == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == fetched
