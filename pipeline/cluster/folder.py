"""The folder jobs/ of a run: what was submitted, and what the jobs say of themselves. State on disk, no daemon."""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from foundation.files import write_json, write_text
from pipeline.cluster.records import Attempts, Submitted
from pipeline.errors import RecipeError
from pipeline.runs.folder import RECIPE_FILE

JOBS = "jobs"


def find_run(name: str) -> Path:
    """The folder of a run, given by its path or by its name in ./runs.

    Raises: RecipeError if there is none.
    """
    for path in (Path(name), Path("runs") / name):
        if (path / RECIPE_FILE).is_file() or JobsFolder(path).exists:
            return path
    raise RecipeError(
        f"{name}: no run in this folder, nor in ./runs by this name; name the folder that holds the run's stages"
    )


class JobsFolder:
    """Paths and records below RUN/jobs."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / JOBS
        self.scripts, self.logs, self.verdicts = self.path / "scripts", self.path / "logs", self.path / "verdicts"
        self.lock = self.path / "submit.lock"
        self._attempts, self._journal, self._token = (
            self.path / "attempts",
            self.path / "submitted.jsonl",
            self.path / "id",
        )

    def make(self) -> None:
        """Makes the folders, and the secret that the jobs of this run know each other by."""
        for folder in (self.scripts, self.logs, self.verdicts, self._attempts):
            folder.mkdir(parents=True, exist_ok=True)
        if not self._token.is_file():
            temporary = self._token.with_name(f".id.{os.getpid()}.{secrets.token_hex(4)}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(16) + "\n")
            try:
                os.link(temporary, self._token)  # of two at once the first one's stays
            except FileExistsError:
                temporary.unlink()
            else:
                temporary.unlink()

    @property
    def exists(self) -> bool:
        """Whether jobs of this run were ever submitted."""
        return self._token.is_file()

    @property
    def token(self) -> str:
        """Raises: RecipeError if nothing has been submitted in this run."""
        try:
            return self._token.read_text().strip()
        except OSError as error:
            raise RecipeError(
                f"{self.run}: no job of this run was submitted (drope submit RECIPE --cluster C)"
            ) from error

    @property
    def label(self) -> str:
        """Eight characters in the names of this run's jobs, and of no other's."""
        return self.token[:8]

    def excluded(self, part: str) -> Path:
        """The file that names nodes which the part's job is not to use again."""
        return self.path / f"excluded-{part}"

    def recipe(self, digest: str) -> Path:
        return self.path / f"recipe-{digest[:12]}.yaml"

    def submitted(self) -> list[Submitted]:
        """All accepted jobs, oldest first."""
        if not self._journal.is_file():
            return []
        return [Submitted.model_validate_json(line) for line in self._journal.read_text(encoding="utf-8").splitlines()]

    def add(self, job: Submitted) -> None:
        """Adds an accepted job, on disk when this returns; only who holds the lock may."""
        lines = [one.model_dump_json() for one in (*self.submitted(), job)]
        write_text(self._journal, "".join(f"{line}\n" for line in lines))

    def attempts(self, part: str, job_id: int, index: int | None) -> Attempts:
        """What a job, or a task, has said of its allocations."""
        path = self._attempts_file(part, job_id, index)
        if not path.is_file():
            return Attempts(part=part, job_id=job_id, index=index)
        return Attempts.model_validate_json(path.read_bytes())

    def attempts_of(self, part: str, job_id: int, indices: Sequence[int | None]) -> dict[int | None, Attempts]:
        """Of many tasks, by index; those that have said nothing are left out."""
        present = {path.name for path in self._attempts.glob(f"{part}.{job_id}*.json")}
        return {
            index: self.attempts(part, job_id, index)
            for index in indices
            if self._attempts_file(part, job_id, index).name in present
        }

    def write_attempts(self, attempts: Attempts) -> None:
        path = self._attempts_file(attempts.part, attempts.job_id, attempts.index)
        write_json(path, json.loads(attempts.model_dump_json()))

    def _attempts_file(self, part: str, job_id: int, index: int | None) -> Path:
        return self._attempts / f"{part}.{job_id}{'' if index is None else f'_{index}'}.json"
