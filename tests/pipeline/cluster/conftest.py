"""A run on the trial cluster, as its user works with it."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cluster.status.run_status import status_of
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.stages.run import run
from tests.slurm.trial_cluster import TrialCluster

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 900
"""That anything may take: machines that run tests are at times ten times slower than at others."""


@dataclass(frozen=True)
class ClusterRun:
    """A recipe, a profile, and the commands with which a user looks after them."""

    cluster: TrialCluster
    folder: Path
    """Working directory."""
    recipe: Path
    profile: Path
    name: str

    @property
    def path(self) -> Path:
        return self.folder / "runs" / self.name

    def drope(self, *words: object, code: int = 0, **environment: str) -> str:
        """What the command prints; it must end with `code`."""
        command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": SECONDS, "cwd": self.folder}
        result = subprocess.run(command, env=self.cluster.environment | environment, check=False, **options)
        assert result.returncode == code, f"{words}: {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result.stdout if code == 0 else result.stdout + result.stderr

    def submit(self, *words: object, code: int = 0, **environment: str) -> str:
        return self.drope("submit", self.recipe, "--cluster", self.profile, *words, code=code, **environment)

    def status(self) -> dict[str, dict[str, Any]]:
        """By stage."""
        command = [sys.executable, "-m", "pipeline.cli", "status", str(self.path), "--json"]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": SECONDS, "cwd": self.folder}
        result = subprocess.run(command, env=self.cluster.environment, check=False, **options)
        assert result.returncode in (0, 1), result.stderr
        return {stage["stage"]: stage for stage in json.loads(result.stdout)["stages"]}

    def wait(self, stage: str, *states: str, seconds: float = SECONDS) -> dict[str, Any]:
        """Until the stage is in one of these states."""
        end = time.monotonic() + seconds
        while (state := self.state(stage)) not in states:
            settled = state in ("complete", "failed", "cancelled", "lost")
            assert not settled and time.monotonic() < end, self.drope_status()
            time.sleep(1)
        return self.status()[stage]

    def state(self, stage: str) -> str:
        """As the command says it, without the cost of starting one."""
        return next(status.state for status in status_of(self.path).stages if status.stage == stage)

    def wait_for_step(self, step: int, seconds: float = SECONDS) -> None:
        """Until the training has done this step."""
        end = time.monotonic() + seconds
        while self.last_step() < step:
            assert time.monotonic() < end, self.drope_status()
            time.sleep(0.05)

    def last_step(self) -> int:
        path = self.path / "recalibration" / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0

    def drope_status(self) -> str:
        return subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "status", str(self.path)],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.cluster.environment,
            check=False,
        ).stdout


PROFILE: dict[str, Any] = {
    "defaults": {"time": 30},
    "pools": {"cpu": {"partition": "cpu", "cpus": 1}, "nodes": {"partition": "main", "cpus": 2, "processes": 2}},
    "stages": {
        "data": {"pool": "cpu", "tasks": 4, "at_once": 3},
        "surgery": {"pool": "cpu"},
        "recalibration": {"pool": "nodes", "nodes": 2},
        "export": {"pool": "cpu"},
        "evaluation": {"pool": "cpu", "tasks": 2},
        "report": {"pool": "cpu"},
    },
    "restarts": {"warning_seconds": 20},
}


@pytest.fixture(scope="module")
def many_documents(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents in eight files, so that eight tasks have something to do."""
    folder = tmp_path_factory.mktemp("many-documents")
    lines = documents.read_text().splitlines(keepends=True)
    for number in range(8):
        (folder / f"{number}.jsonl").write_text("".join(lines[number::8]))
    return folder


@pytest.fixture(scope="module")
def prepared(raw_recipe: dict[str, Any], many_documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose stages data and surgery are complete."""
    folder = tmp_path_factory.mktemp("prepared")
    recipe = recipe_on(raw_recipe, many_documents) | {"name": "prepared", "runs_dir": str(folder)}
    run(load(recipe, folder / "recipe.yaml"), ("data", "surgery"))
    return folder / "prepared"


def load(recipe: dict[str, Any], path: Path) -> Recipe:
    path.write_text(yaml.safe_dump(recipe))
    return load_recipe(path)


def recipe_on(raw_recipe: dict[str, Any], documents: Path) -> dict[str, Any]:
    """The tiny recipe on these documents, with two data-parallel ranks."""
    data = raw_recipe["data"] | {"sources": [{"path": f"{documents}/*.jsonl"}], "workers": 1}
    return {**raw_recipe, "data": data, "recalibration": raw_recipe["recalibration"] | {"data_parallel": 2}}


@pytest.fixture
def cluster_run(
    cluster: TrialCluster,
    raw_recipe: dict[str, Any],
    many_documents: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., ClusterRun]:
    """A run in a folder of its own; keyword arguments change sections of the recipe, `profile` those of the profile.

    With `training` the stages before the training are complete already, and it has these settings and a process on
    every node; without, TP 2 on every node.
    """

    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])

    def make(
        name: str = "tiny",
        profile: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        **sections: Any,
    ) -> ClusterRun:
        # Relative paths, a space and a quote, as in folders of real users.
        folder = tmp_path / "it's here"
        folder.mkdir(exist_ok=True)
        recipe = recipe_on(raw_recipe, many_documents) | {"name": name}
        for section, values in {**sections, "recalibration": training or {}}.items():
            recipe[section] = recipe.get(section, {}) | values
        if training:
            recipe["surgery"] = recipe["surgery"] | {"tensor_parallel": 1}  # half the processes to start
            shutil.copytree(prepared, folder / "runs" / name)
        made = ClusterRun(cluster, folder, folder / f"{name}.yaml", folder / f"{name}-cluster.yaml", name)
        made.recipe.write_text(yaml.safe_dump(recipe))
        changes = profile or {}
        of_stages = {
            stage: values | changes.get("stages", {}).get(stage, {}) for stage, values in PROFILE["stages"].items()
        }
        of_stages["recalibration"]["processes"] = recipe["surgery"]["tensor_parallel"]
        changed = {**PROFILE, **changes, "stages": of_stages}
        made.profile.write_text(yaml.safe_dump(changed))
        return made

    return make


@pytest.fixture(scope="module")
def long_training() -> dict[str, Any]:
    """300 steps with a checkpoint every 20, a few seconds of training."""
    return {"tokens": 300 * 4 * 32, "checkpoint_every": 20, "validation_every": 150}


@pytest.fixture(scope="module", autouse=True)
def _this_project_on_the_path() -> Iterator[None]:
    """Jobs run in other folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield
