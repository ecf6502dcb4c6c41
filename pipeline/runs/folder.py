"""The folders of a run and of its stages: what they were made from, whether they are complete, who holds them."""

import fcntl
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from foundation.files import is_temporary, remove_leftovers, write_json
from foundation.full_disk import explained_full_disk
from pipeline.errors import BAD_INPUT, RecipeError
from pipeline.recipe.recipe import Recipe, write_recipe
from pipeline.runs.manifest import (
    MANIFEST_FILE,
    Manifest,
    describe_outputs,
    differences,
    environment,
    now,
    read_record,
)
from pipeline.runs.stage import Stage

log = logging.getLogger(__name__)

STARTED_FILE = "started.json"
RECIPE_FILE = "recipe.yaml"
LOCK_FILE = ".lock"


class Identity(BaseModel):
    """What a stage is made from: equal identities give equal results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: dict[str, Any]
    inputs: dict[str, str]


def save_manifest(stage: Stage, identity: Identity, folder: Path, started: Any, facts: dict[str, Any]) -> None:
    """The last act of a stage: the digests of its outputs, and with them its completeness."""
    manifest = Manifest(
        stage=stage.name,
        started=started,
        finished=now(),
        config=identity.config,
        inputs=identity.inputs,
        outputs=describe_outputs(folder, output_files(stage, folder)),
        facts=facts,
        environment=environment(),
    )
    manifest.save(folder)
    # Only now: until the manifest is there, this file alone says with which settings the folder was begun.
    (folder / STARTED_FILE).unlink()


def is_complete(stage: Stage, recipe: Recipe) -> bool:
    """Whether the stage is done with these settings and inputs.

    Raises: RecipeError if it is done, or was begun, with others (the differences are named), or an output is gone.
    """
    folder = recipe.folder / stage.name
    manifest = Manifest.load(folder)
    begun = folder / STARTED_FILE
    if manifest is None:
        if begun.is_file():
            refuse_other(stage, recipe, read_record(begun, Identity))
        return False
    refuse_other(stage, recipe, Identity(config=manifest.config, inputs=manifest.inputs))
    for output in manifest.outputs:
        path = folder / output.path
        if not path.is_file() or path.stat().st_size != output.bytes:
            raise RecipeError(f"{path}: gone or changed since the stage was complete; remove {folder} to run it again")
    return True


def refuse_other(stage: Stage, recipe: Recipe, recorded: Identity) -> None:
    """Raises: RecipeError if what is in the stage's folder was made with other settings or from other inputs."""
    expected = identify(stage, recipe, partial=True)
    # Settings that counted when it was made, and inputs that are not made yet, are not compared.
    config = {name: value for name, value in recorded.config.items() if name in expected.config}
    inputs = {name: digest for name, digest in recorded.inputs.items() if name in expected.inputs}
    changed = differences({"config": config, "inputs": inputs}, expected.model_dump(), stage.settings_in_recipes)
    if changed:
        folder = recipe.folder / stage.name
        more = f" and {len(changed) - 1} more differences" if len(changed) > 1 else ""
        raise RecipeError(
            f"{folder}: holds a {stage.name} stage of another recipe: {changed[0]}{more}; "
            f"give this run another name, or remove {folder} and the stages made from it"
        )


def identify(stage: Stage, recipe: Recipe, *, partial: bool = False) -> Identity:
    """The stage's settings, and the digests of what it is made from; `partial` leaves out inputs not yet made.

    Raises: RecipeError if an input stage is not complete.
    """
    inputs = dict(stage.sources(recipe))
    for name in stage.needs(recipe):
        manifest = Manifest.load(recipe.folder / name)
        if manifest is not None:
            inputs[name] = manifest.digest
        elif not partial:
            raise RecipeError(f"stage {stage.name} needs stage {name}, which is not complete in {recipe.folder}")
    return Identity(config=stage.config(recipe), inputs=inputs)


def prepare_folder(stage: Stage, identity: Identity, folder: Path) -> None:
    """An empty folder, or for a stage that resumes the one that was left, marked with what it is made from."""
    if folder.is_dir() and not stage.resumes:
        shutil.rmtree(folder)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        remove_leftovers(place)  # those of other machines stay: tasks of the stage may be writing them
    if (folder / STARTED_FILE).is_file():
        log.info("%-13s goes on from where it was cut off", stage.name)
    mark_begun(identity, folder)


def mark_begun(identity: Identity, folder: Path) -> None:
    """Makes a stage's folder and leaves in it what it is made from."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STARTED_FILE, identity.model_dump(mode="json"))


def has_progress(stage: Stage, folder: Path) -> bool:
    """Whether a stage that resumes has left something to go on with."""
    folders = [folder / name for name in (*stage.scratch, *stage.keeps)]
    return any(path.is_dir() and any(path.iterdir()) for path in folders)


def output_files(stage: Stage, folder: Path) -> list[Path]:
    """The files that the stage made, without its scratch and what writes that were cut off have left."""
    marks = (folder / MANIFEST_FILE, folder / STARTED_FILE)
    files = (path for path in folder.rglob("*") if path.is_file() and path not in marks)
    relative = ((path, path.relative_to(folder).parts) for path in files)
    return [
        path
        for path, parts in relative
        if parts[0] not in stage.scratch and not any(is_temporary(Path(part)) for part in parts)
    ]


def refuse_foreign_folder(folder: Path) -> None:
    """Raises: RecipeError if the folder holds something, and not a run: stages empty the folders that they run in."""
    marks = (LOCK_FILE, RECIPE_FILE)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / mark).exists() for mark in marks):
        raise RecipeError(f"{folder}: is there already and is not the folder of a run; choose another name or runs_dir")


def begin_run(recipe: Recipe) -> None:
    """Makes the run's folder for tasks that begin at the same time, and leaves the recipe in it.

    Raises: RecipeError if it is something else's folder.
    """
    refuse_foreign_folder(recipe.folder)
    recipe.folder.mkdir(parents=True, exist_ok=True)
    (recipe.folder / LOCK_FILE).touch()  # first of all: it marks the folder as a run's to tasks that start now
    write_recipe(recipe, recipe.folder / RECIPE_FILE)


def explained_full_run_disk(path: Path) -> AbstractContextManager[None]:
    """As `explained_full_disk`, for what is written below a run's folder.

    Raises: DiskError.
    """
    return explained_full_disk(path, "free space there or set runs_dir to another disk", by_free_space=True)


@contextmanager
def run_folder(recipe: Recipe, stages: Sequence[Stage]) -> Iterator[Path]:
    """The run's folder, made if need be and these stages locked; removed again if nothing came to be in it.

    Raises: RecipeError if it cannot be made, is something else's folder, or another process runs one of them now.
    """
    folder = recipe.folder
    existed = folder.is_dir()
    refuse_foreign_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise RecipeError(f"runs_dir = {recipe.runs_dir!r}: cannot make {folder.name} there: {error}") from error
    (folder / LOCK_FILE).touch()
    with ExitStack() as locks:
        for stage in stages:
            locks.enter_context(locked(folder, stage))
        try:
            with explained_full_run_disk(folder):
                yield folder
        except BAD_INPUT:
            if not existed and not any(path.is_dir() for path in folder.iterdir()):
                shutil.rmtree(folder)
            raise


@contextmanager
def locked(folder: Path, stage: Stage) -> Iterator[None]:
    """Holds a stage of a run, which other stages may run beside (jobs of a cluster do).

    Raises: RecipeError if another process has it.
    """
    with (folder / f"{LOCK_FILE}-{stage.name}").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecipeError(
                f"{folder}: another process is running stage {stage.name} of this recipe; wait for it or stop it"
            ) from error
        except OSError as error:  # a network file system without locks; jobs of a cluster need none
            log.warning(
                "%s: cannot be locked (%s): take care that nobody else runs this recipe", folder, error.strerror
            )
        yield
