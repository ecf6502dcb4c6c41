"""`drope fetch` from a small Hub on this machine, and what then runs when that is gone."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file

from pipeline.errors import RecipeError, StageFailed
from pipeline.recipe.assets import assets_of
from pipeline.recipe.hub_errors import hub_error
from pipeline.recipe.recipe import load_recipe
from tests.hub_server import COMMIT, HubServer

CARD = """---
configs:
- config_name: sample
  data_files:
  - {split: train, path: sample/*.jsonl}
---
"""
ARC = """---
configs:
- config_name: ARC-Easy
  data_files:
  - {split: train, path: train.parquet}
  - {split: validation, path: validation.parquet}
  - {split: test, path: test.parquet}
---
"""
ESSAYS = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.parquet}
---
"""
WEB = {"hub": "org/web", "hub_config": "sample", "revision": COMMIT}
EVALUATION = {
    "variants": ["rope", "drope"],
    "context_factors": [1, 2],
    "harness": [{"name": "arc_easy"}],
    "niah": {"tasks": ["niah_single_1", "niah_single_2"]},
}
RESOLVE = """
import json, sys
from pipeline.errors import RecipeError
from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.recipe import ModelConfig
found = []
for settings in json.loads(sys.argv[1]):
    try:
        found.append(sorted(path.name for path in resolve_model(ModelConfig(**settings)).iterdir()))
    except RecipeError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def hub(documents: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A data set of documents beside another configuration's files, two models, ARC-Easy and essays."""
    lines = documents.read_bytes().splitlines(keepends=True)
    web = {"README.md": CARD.encode(), "other/big.jsonl": b"never asked for\n"}
    web |= {"sample/a.jsonl": b"".join(lines[:200]), "sample/b.jsonl": b"".join(lines[200:])}
    server = HubServer("org/web", web)
    server.add_model("org/tiny", tiny_model)
    old = tmp_path_factory.mktemp("old") / "model"
    shutil.copytree(tiny_model, old, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(tiny_model / "model.safetensors"), old / "pytorch_model.bin")
    server.add_model("org/torch", old)
    choices = {"text": ["a dog", "a stone"], "label": ["A", "B"]}
    arc = parquet([{"id": "1", "question": "What barks?", "choices": choices, "answerKey": "A"}] * 3)
    splits = {f"{split}.parquet": arc for split in ("train", "validation", "test")}
    server.add_data("allenai/ai2_arc", {"README.md": ARC.encode(), **splits})
    essays = parquet([{"text": "One. Two. Three."}])
    server.add_data("baber/paul_graham_essays", {"README.md": ESSAYS.encode(), "train.parquet": essays})
    yield server
    server.stop()


@pytest.fixture
def online(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    """The environment of a login node whose Hub is the small one, with a cache of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", "HF_HUB_DISABLE_XET": "1"}
    return kept | own | {"HF_HUB_DISABLE_TELEMETRY": "1"}


def unreachable(online: dict[str, str], **more: str) -> dict[str, str]:
    """The same machine without a network: nothing listens at port 9."""
    return online | {"HF_ENDPOINT": "http://127.0.0.1:9"} | more


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Lines of the final error."""
    text = result.stderr.split("drope: ")
    assert len(text) == 2, result.stderr
    return text[1].strip().splitlines()


@pytest.mark.long
def test_what_is_fetched_is_enough_without_a_network(
    drope: Any, write_recipe: Callable[..., Path], hub: HubServer, online: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(
        model={"path": "org/tiny"},
        data={"sources": [WEB], "row_length": 32, "validation_fraction": 0.2},
        evaluation=EVALUATION,
    )
    before = drope("fetch", recipe, "--list", env=online)
    assert before.stdout.splitlines() == [
        "missing  model org/tiny (model.path)",
        "missing  data org/web/sample/train (data.sources.0)",
        "         offline, and the Hub cache has no list of its files; run `hf download org/web --repo-type dataset "
        f"--revision {COMMIT}` where there is a network, with --include and a pattern where the data set has more "
        "files",
        "missing  task allenai/ai2_arc/ARC-Easy (evaluation.harness.arc_easy)",
        "missing  essays baber/paul_graham_essays (evaluation.niah)",
        "0 of 4 are there; drope fetch brings what the Hub has",
    ]
    fetched = drope("fetch", recipe, env=online)
    assert fetched.returncode == 0, fetched.stderr
    last = fetched.stdout.splitlines()[-1]
    assert "4 of 4 found with the Hub shut off" in last and "drope run works with HF_HUB_OFFLINE=1" in last
    assert "data org/web/sample/train (data.sources.0): 3 files" in fetched.stderr
    assert not any("other/big.jsonl" in request for request in hub.requests)

    next((tmp_path / "hf").rglob("sample/b.jsonl")).unlink()
    assert "3 of 4 are there" in drope("fetch", recipe, "--list", env=online).stdout
    hub.requests.clear()
    mended = drope("fetch", recipe, env=online)
    assert mended.returncode == 0, mended.stderr
    assert mended.stderr.count("is there") == 3
    assert not any("model.safetensors" in request or "a.jsonl" in request for request in hub.requests)

    again = drope("fetch", recipe, env=unreachable(online))
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("is there") == 4 and "0 files of 0.0 kB brought" in again.stdout
    alone = unreachable(online, HF_HUB_OFFLINE="1")
    listed = json.loads(drope("fetch", recipe, "--json", env=alone).stdout)
    assert [asset["kind"] for asset in listed] == ["model", "data", "task", "essays"]
    assert all(asset["there"] and asset["lack"] is None for asset in listed)
    ran = drope("run", recipe, "--stage", "data", "--stage", "surgery", env=alone)
    assert ran.returncode == 0, ran.stderr
    for stage in ("data", "surgery"):
        assert (tmp_path / "runs" / "tiny" / stage / "manifest.json").is_file()


def test_a_cached_model_is_found_at_any_kind_of_revision(online: dict[str, str]) -> None:
    def resolve(environment: dict[str, str], *models: dict[str, Any]) -> list[Any]:
        command = [sys.executable, "-c", RESOLVE, json.dumps(models)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    revisions = ({}, {"revision": "main"}, {"revision": "v1"}, {"revision": COMMIT})
    models = [{"path": path, **revision} for path in ("org/tiny", "org/torch") for revision in revisions]
    fetched = resolve(online, *models)
    assert resolve(unreachable(online, HF_HUB_OFFLINE="1"), *models) == fetched
    assert all("model.safetensors" in names for names in fetched[:4])
    assert all("pytorch_model.bin" in names for names in fetched[4:])
    unknown = {"path": "org/tiny", "revision": "v2"}
    (offline,) = resolve(unreachable(online, HF_HUB_OFFLINE="1"), unknown)
    assert "run `drope fetch RECIPE` where there is a network" in offline
    (refused,) = resolve(online, unknown)
    assert "the repository has no such revision" in refused


def test_a_model_drawn_from_a_seed_is_fetched_without_weights(
    drope: Any, write_recipe: Callable[..., Path], hub: HubServer, online: dict[str, str], documents: Path
) -> None:
    data = {"sources": [{"path": str(documents)}], "row_length": 32}
    evaluation = {"variants": ["drope"], "context_factors": [1]}
    recipe = write_recipe(model={"path": "org/tiny", "random_seed": 0}, data=data, evaluation=evaluation)
    hub.requests.clear()
    fetched = drope("fetch", recipe, env=online)
    assert fetched.returncode == 0, fetched.stderr
    assert not any("safetensors" in request for request in hub.requests)
    lacking = drope("fetch", recipe, "model.random_seed=null", "--json", env=online)
    assert [asset["there"] for asset in json.loads(lacking.stdout)] == [False, True]


def test_one_that_fails_does_not_hide_the_others(
    drope: Any, write_recipe: Callable[..., Path], online: dict[str, str], tmp_path: Path
) -> None:
    sources = [WEB, {**WEB, "hub_config": "sampel"}, {**WEB, "revision": "v1"}, {"path": str(tmp_path / "none.jsonl")}]
    recipe = write_recipe(
        model={"path": "nobody/nothing"},
        data={"sources": sources, "row_length": 32, "tokenizer": str(tmp_path / "tokenizer.json")},
        evaluation=EVALUATION | {"harness": [{"name": "arc_easy"}, {"name": "piqa"}]},
    )
    failed = drope("fetch", recipe, env=online)
    assert failed.returncode == 2
    first, *lines = errors(failed)
    assert first == "6 of 9 are not to be had:"
    model, config, moving, path, tokenizer, piqa = (line.strip() for line in lines)
    assert model.startswith("model nobody/nothing (model.path): ") and "no such repository, or it is private" in model
    assert "data.sources.1" in config and "nearest: sample" in config
    assert "data.sources.2" in moving and f"pin it: revision: {COMMIT}" in moving
    assert "data.sources.3" in path and "no such file" in path
    assert "data.tokenizer" in tokenizer and "no such file or folder" in tokenizer
    assert "task baber/piqa (evaluation.harness.piqa)" in piqa and "doesn't exist on the Hub" in piqa
    there = [asset["there"] for asset in json.loads(drope("fetch", recipe, "--json", env=unreachable(online)).stdout)]
    assert there == [False, True, False, False, False, False, True, False, True]


def test_a_gated_model_says_how_to_get_it(
    drope: Any, write_recipe: Callable[..., Path], online: dict[str, str]
) -> None:
    failed = drope("fetch", write_recipe(model={"path": "gated/set"}), env=online)
    assert failed.returncode == 2
    (line,) = errors(failed)
    assert line.endswith("is gated; accept its terms on the Hub and log in with `hf auth login`")


def test_a_disk_without_room_is_said(
    drope: Any, write_recipe: Callable[..., Path], online: dict[str, str], small_disk: Path
) -> None:
    """The model's weights, of unknown size before, end in the middle; the documents' size is known and refused."""
    recipe = write_recipe(model={"path": "org/tiny"}, data={"sources": [WEB], "row_length": 32})
    small = online | {"HF_HOME": str(small_disk / "hf")}
    (small_disk / "taken").write_bytes(bytes(60_000))
    failed = drope("fetch", recipe, env=small)
    assert failed.returncode == 2
    _, model, documents = errors(failed)
    assert "the disk is full below" in model
    assert "GB to bring" in documents and "set HF_HOME to another disk" in documents


def test_a_task_that_may_be_left_out_stops_nothing(
    drope: Any, write_recipe: Callable[..., Path], online: dict[str, str]
) -> None:
    evaluation = EVALUATION | {"harness": [{"name": "piqa"}], "missing_data": "leave_out"}
    fetched = drope("fetch", write_recipe(evaluation=evaluation), env=online)
    assert fetched.returncode == 0, fetched.stderr
    assert "task baber/piqa (evaluation.harness.piqa): left out: " in fetched.stderr
    assert "3 of 3 found" in fetched.stdout


def test_a_hub_that_does_not_answer_is_no_bad_input(
    drope: Any, write_recipe: Callable[..., Path], online: dict[str, str]
) -> None:
    data = {"sources": [WEB], "row_length": 32}
    recipe = write_recipe(model={"path": "org/tiny"}, data=data, evaluation=EVALUATION)
    failed = drope("fetch", recipe, env=unreachable(online))
    assert failed.returncode == 1
    first, *lines = errors(failed)
    assert first == "4 of 4 are not to be had:" and len(lines) == 4
    assert all("not in the Hub's cache, and http://127.0.0.1:9 does not answer" in line for line in lines)
    assert "Traceback" not in failed.stderr
    here = drope("run", recipe, "--stage", "surgery", env=unreachable(online))
    assert here.returncode == 1 and "the Hub does not answer" in errors(here)[0]


def test_fetching_with_the_hub_forbidden_says_so(
    drope: Any, write_recipe: Callable[..., Path], hub: HubServer, online: dict[str, str]
) -> None:
    asked = len(hub.requests)
    failed = drope("fetch", write_recipe(model={"path": "org/tiny"}), env=online | {"HF_HUB_OFFLINE": "1"})
    assert failed.returncode == 2
    assert errors(failed) == [
        "model org/tiny (model.path): not in the Hub's cache, and HF_HUB_OFFLINE=1 forbids to ask the Hub; unset it to "
        "fetch"
    ]
    assert len(hub.requests) == asked


def _raised(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "ends", "says"),
    [
        (_raised(RuntimeError("odd"), OSError(errno.ENOSPC, "no space")), StageFailed, "the disk is full below"),
        (_raised(LocalEntryNotFoundError("lost"), TimeoutError("slow")), ConnectionError, "does not answer (lost)"),
        (ConnectionResetError("reset by peer"), ConnectionError, "does not answer (reset by peer); try again"),
        (_raised(FileNotFoundError("x"), OfflineModeIsEnabled("off")), RecipeError, "run `drope fetch RECIPE` where"),
        (ValueError("BuilderConfig 'b' not found. Available: ['a']"), RecipeError, "Available: ['a']"),
        (HFValidationError("a--b is no name"), RecipeError, "no name of a repository (a--b is no name)"),
        (RuntimeError("two\nlines"), StageFailed, "thing: two lines"),
    ],
)
def test_errors_of_the_hub_clients_become_one_line(error: Exception, ends: type[Exception], says: str) -> None:
    made = hub_error("thing", error)
    assert type(made) is ends and str(made).startswith("thing: ") and says in str(made)


def test_what_a_recipe_wants(write_recipe: Callable[..., Path], documents: Path, tmp_path: Path) -> None:
    evaluation = EVALUATION | {
        "harness": [{"name": "ours", "path": "ours.jsonl"}, {"name": "winogrande"}],
        "longbench": {"tasks": ["lcc"]},
        "niah": {"tasks": ["niah_single_1"]},
    }
    sources = [{"path": str(documents)}, {"path": "s3://bucket/*.parquet"}, WEB]
    recipe = load_recipe(write_recipe(data={"sources": sources, "row_length": 32}, evaluation=evaluation))
    assets = assets_of(recipe)
    assert [(asset.kind, asset.name, asset.repository) for asset in assets[1:]] == [
        ("data", str(documents), None),
        ("data", "s3://bucket/*.parquet", None),
        ("data", "org/web/sample/train", "org/web"),
        ("task", "ours.jsonl", None),
        ("task", "allenai/winogrande/winogrande_xl", "allenai/winogrande"),
        ("task", "Xnhyacinth/LongBench/lcc", "Xnhyacinth/LongBench"),
    ]
    assert [asset.name for asset in assets if asset.remote] == ["s3://bucket/*.parquet"]
    assert [asset.bring is not None for asset in assets] == [asset.repository is not None for asset in assets]
