"""What the stages of a recipe read that no stage makes: models, documents, the data of tasks, files."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from data_prep.config import SourceConfig
from eval.config import EvaluationConfig
from eval.tasks.hub import fetch_data
from pipeline.errors import RecipeError
from pipeline.recipe.model_source import is_hub_id, resolve_model
from pipeline.recipe.recipe import Recipe

log = logging.getLogger(__name__)

Kind = Literal["model", "data", "task", "essays", "file"]


@dataclass(frozen=True)
class Asset:
    """Something that a run of the recipe reads and that is not made by the run.

    name: a Hub id, with its configuration, or a path. where: the field of the recipe. repository: of the Hub, None for
    a path. optional: the evaluation goes without it. find: looks for it, and raises where it is not. bring: gets it.
    """

    kind: Kind
    name: str
    where: str
    repository: str | None = None
    optional: bool = False
    find: Callable[[], object] = field(default=lambda: None, repr=False, compare=False)
    bring: Callable[[], object] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.where})"

    @property
    def remote(self) -> bool:
        """Whether the run reads it from another server than the Hub, which has no cache here."""
        return self.repository is None and "://" in self.name and not self.name.startswith("file://")


def assets_of(recipe: Recipe) -> list[Asset]:
    """All that the recipe's stages read, in their order. Nothing is looked for."""
    data = recipe.data
    assets = [_model(recipe), *(_source(number, source) for number, source in enumerate(data.sources))]
    files = {"data.tokenizer": data.tokenizer, "report.published": recipe.report.published}
    assets += [_file(where, path) for where, path in files.items() if path is not None]
    return assets + _evaluation(recipe.evaluation)


def _model(recipe: Recipe) -> Asset:
    path = recipe.model.path
    if Path(path).is_dir() or not is_hub_id(path):
        return Asset("model", path, "model.path", find=partial(resolve_model, recipe.model))
    bring = partial(resolve_model, recipe.model)
    return Asset("model", path, "model.path", path, find=partial(_find_checkpoint, recipe), bring=bring)


def _find_checkpoint(recipe: Recipe) -> None:
    """Raises: RecipeError, SurgeryError or DataError if description, weights or tokenizer are not there, or broken."""
    from data_prep.tokenizers.reference import load_tokenizer
    from model_surgery.checkpoint import Checkpoint
    from model_surgery.shape import read_shape

    folder = resolve_model(recipe.model)
    if recipe.model.random_seed is None:
        with Checkpoint(folder):
            log.debug("%s: whole", folder)
    else:
        read_shape(folder)
    if recipe.data.tokenizer is None:
        load_tokenizer(folder)


def _source(number: int, source: SourceConfig) -> Asset:
    from data_prep.reading.hub import fetch_files
    from data_prep.reading.sources import source_files

    where, find = f"data.sources.{number}", partial(source_files, source)
    if source.hub is not None:
        name = source.label.removeprefix("hub:")
        return Asset("data", name, where, source.hub, find=find, bring=partial(fetch_files, source))
    asset = Asset("data", source.label, where)
    return asset if asset.remote else Asset("data", source.label, where, find=find)


def _file(where: str, path: str | Path) -> Asset:
    return Asset("file", str(path), where, find=partial(_require, Path(path)))


def _require(path: Path) -> None:
    if not path.exists():
        raise RecipeError("no such file or folder; mend the path")


def _evaluation(config: EvaluationConfig) -> list[Asset]:
    """What the evaluation reads; tasks by the functions that it reads them with."""
    from eval.tasks.harness import read_items
    from eval.tasks.longbench import load_items
    from eval.tasks.niah.tasks import TASKS
    from eval.tasks.niah.words import ESSAYS, read_essays

    optional, assets = config.missing_data == "leave_out", []
    for task in config.harness:
        read = partial(read_items, task)
        assets.append(_task(task.name, f"evaluation.harness.{task.name}", task.path, read, optional))
    if config.longbench is not None:
        for name in config.longbench.tasks:
            folder, read = config.longbench.folder, partial(load_items, name, config.longbench)
            assets.append(_task(f"longbench_{name}", "evaluation.longbench", folder, read, optional))
    if config.niah is not None and any(TASKS[name].haystack == "essays" for name in config.niah.tasks):
        path = config.niah.essays
        hub = None if path else ESSAYS
        bring = None if path else partial(fetch_data, ESSAYS, None)
        find = partial(read_essays, path)
        assets.append(Asset("essays", str(path or ESSAYS), "evaluation.niah", hub, optional, find=find, bring=bring))
    return assets + _evaluation_files(config)


def _evaluation_files(config: EvaluationConfig) -> list[Asset]:
    """Files that are only read from this machine."""
    recall = config.recall
    words = [] if recall is None else [("evaluation.recall", path) for path in (recall.keys, recall.values)]
    factors = config.longrope2.factors if "longrope2" in config.variants else None
    files = dict.fromkeys([*words, ("evaluation.longrope2.factors", factors)])
    return [_file(where, path) for where, path in files if isinstance(path, Path)]


def _task(name: str, where: str, path: Path | None, read: Callable[[], object], optional: bool) -> Asset:
    """A task's data: a local file or folder, or lm-eval's own data set."""
    from eval.tasks.lm_tasks import dataset_of

    if path is not None:
        return Asset("task", str(path), where, optional=optional, find=read)
    dataset, configuration = dataset_of(name)
    bring = partial(fetch_data, dataset, configuration)
    label = "/".join(filter(None, (dataset, configuration)))
    return Asset("task", label, where, dataset, optional, find=read, bring=bring)
