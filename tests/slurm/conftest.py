"""Jobs of small shell commands."""

from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.job import Job
from slurm.profile import Resources


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A job in a folder of its own; keyword arguments change its fields."""

    def make(**changes: object) -> Job:
        folder = Path(str(changes.pop("folder", tmp_path)))
        values = {
            "name": f"run.part.{tmp_path.name}",  # SLURM remembers jobs of other tests
            "command": ("true",),
            "resources": Resources(partition="main", time="5"),
            "folder": folder,
            "log": folder / "log",
            "verdict": folder / "verdict",
            "excluded": folder / "excluded",
        }
        return Job(**(values | changes))

    return make
