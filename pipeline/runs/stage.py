"""What a run asks of its stages. Each of them is a file in pipeline/stages and a line in order.py there."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from model_surgery.shape import ModelShape
from pipeline.launch.machines import Machines
from pipeline.recipe.recipe import Recipe


class Stage(ABC):
    """One stage of a run; its results lie in the folder of its name in the run's folder."""

    name: ClassVar[str]
    help: ClassVar[str]
    resumes: ClassVar[bool] = False
    """Whether a stage that was cut off goes on with what is in its folder; the others begin anew."""
    scratch: ClassVar[tuple[str, ...]] = ()
    """Folders and files below the stage's that are not its outputs."""
    keeps: ClassVar[tuple[str, ...]] = ()
    """Folders of outputs that are progress too: a failure after they were made does not remove them."""
    settings_in_recipes: ClassVar[Mapping[str, str]] = {}
    """Recipes' names of settings that the stage's files keep under another, older name."""
    guards_progress: ClassVar[bool] = False
    """Whether it refuses by itself to go on with what was made with other settings."""
    spans_nodes: ClassVar[bool] = False
    """Whether it starts processes on all `machines` of the run: the nodes of a job, one process to a GPU."""

    def applies_to(self, recipe: Recipe) -> bool:
        """Whether the recipe has this stage."""
        return True

    def needs(self, recipe: Recipe) -> tuple[str, ...]:
        """The stages of this recipe that it is made from."""
        return ()

    @abstractmethod
    def config(self, recipe: Recipe) -> dict[str, Any]:
        """The settings that its results depend on, as JSON."""

    def sources(self, recipe: Recipe) -> dict[str, str]:
        """Fingerprints of what it is made from outside the run's folder."""
        return {}

    def check_settings(self, recipe: Recipe, shape: ModelShape) -> None:
        """Refuses what the recipe and the source's shape alone show; reads no weights and no documents.

        Raises: RecipeError or a package's own error.
        """

    def check(self, recipe: Recipe, shape: ModelShape) -> None:
        """Refuses what files outside the run's folder show, before the stage and those before it begin.

        Raises: RecipeError or a package's own error.
        """

    def check_inputs(self, recipe: Recipe) -> None:
        """Refuses what the stages before show; called where it runs alone, so that those are complete.

        Raises: RecipeError or a package's own error.
        """

    def check_machines(self, recipe: Recipe, machines: Machines) -> None:
        """Raises: RecipeError if it cannot run on these machines."""

    @abstractmethod
    def run(self, recipe: Recipe, run_dir: Path, stage_dir: Path, machines: Machines) -> dict[str, Any]:
        """Does the stage in its folder of the run's; facts for the manifest, as JSON.

        Raises: a package's own error on bad input, StageFailed, Stopped.
        """

    def progress(self, stage_dir: Path) -> int:
        """How far it has come: a number that grows whenever work is safe; 0 where it begins anew when it is cut off."""
        return 0

    def disk_bytes(self, recipe: Recipe, shape: ModelShape, tokens: int) -> dict[str, int]:
        """Bytes that it leaves in the run's folder, by what they are. tokens: of one training."""
        return {}


class ArrayStage(Stage):
    """A stage that many tasks can do, which know nothing of each other but the run's folder.

    They may run at the same time, on any machines that see the folder, and again after they were killed. `run` does
    what they left, and puts together what they made.
    """

    merge_resources: ClassVar[str | None] = None
    """The stage whose resources of a cluster the merge asks for; None: its own."""
    merge_finishes: ClassVar[bool] = False
    """Whether the merge may do what the tasks left undone: with the resources that it asks for it can."""

    @abstractmethod
    def most_tasks(self, recipe: Recipe) -> int:
        """How many tasks could have something to do, as far as that is known before any work."""

    @abstractmethod
    def run_task(self, recipe: Recipe, task: int, of: int, check: Callable[[], None]) -> None:
        """Task `task` (0 ... of - 1): its share of the work. Where no stage before it has, it begins the run's folder.

        check: all checks before work, for the tasks that come first; it may take seconds, and the tasks may be many.

        Raises: RecipeError or a package's own error on bad input.
        """

    @abstractmethod
    def undone_tasks(self, recipe: Recipe, of: int) -> list[int]:
        """Numbers of the tasks, of `of`, that have something left to do; all where that cannot be known yet.

        Raises: RecipeError or a package's own error.
        """

    @abstractmethod
    def check_merge(self, recipe: Recipe) -> None:
        """Raises: RecipeError or a package's own error if the tasks have left something undone."""
