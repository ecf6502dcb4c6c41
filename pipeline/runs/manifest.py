"""The manifest: written last into a stage's folder, it says that the stage is complete and from what it was made."""

import hashlib
import json
import platform
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from foundation.files import write_json
from model_surgery.files import file_digest
from pipeline.errors import RecipeError

MANIFEST_FILE = "manifest.json"
Record = TypeVar("Record", bound=BaseModel)
_PACKAGES = ("torch", "deepspeed", "megatron-core", "transformers", "datasets", "tokenizers", "lm-eval", "numpy")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Output(_Frozen):
    """One file that the stage made."""

    path: str
    bytes: int
    sha256: str


class Manifest(_Frozen):
    """A complete stage: its settings, what it was made from, what it made, and the numbers worth reading."""

    schema_version: Literal[1] = 1
    stage: str
    started: datetime
    finished: datetime
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: tuple[Output, ...]
    facts: dict[str, Any]
    environment: dict[str, str]

    @property
    def digest(self) -> str:
        """sha256 over the stage's outputs: the lineage that later stages record as their input."""
        lines = "".join(f"{output.path} {output.sha256}\n" for output in self.outputs)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def seconds(self) -> float:
        return (self.finished - self.started).total_seconds()

    @staticmethod
    def load(folder: Path) -> "Manifest | None":
        """The manifest in a stage's folder, or None if the stage is not complete.

        Raises: RecipeError if there is a file that is none.
        """
        path = folder / MANIFEST_FILE
        return read_record(path, Manifest) if path.is_file() else None

    def save(self, folder: Path) -> None:
        """Marks the stage complete."""
        write_json(folder / MANIFEST_FILE, self.model_dump(mode="json"))


def read_record(path: Path, kind: type[Record]) -> Record:
    """What a stage wrote of itself as JSON.

    Raises: RecipeError if the file is damaged or of another kind.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise RecipeError(
            f"{path}: not a stage's {path.name}: {where}: {problem['msg']}; remove {path.parent} to run the stage again"
        ) from error


def describe_outputs(folder: Path, paths: list[Path]) -> tuple[Output, ...]:
    """Size and digest of every file in `paths`, by its path below `folder`, sorted."""
    return tuple(
        Output(path=str(path.relative_to(folder)), bytes=path.stat().st_size, sha256=file_digest(path))
        for path in sorted(paths)
    )


def differences(
    recorded: dict[str, Any], expected: dict[str, Any], names: Mapping[str, str], prefix: str = ""
) -> list[str]:
    """Dotted paths at which two nested settings differ, as 'path: recorded -> expected'.

    names: what to call a setting in a path, by its key; others are called by their keys.
    """
    lines = []
    for key in sorted(recorded.keys() | expected.keys()):
        old, new = recorded.get(key), expected.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, names, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{names.get(key, key)}: {_short(old)} -> {_short(new)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def environment() -> dict[str, str]:
    """Versions of what computes, the project's git revision where there is one, and the host."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages, "git": git_revision(), "host": socket.gethostname()}


def git_revision() -> str:
    """The revision of the checkout that this code runs from, with +changes if it has any; 'unknown' outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+changes", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)
