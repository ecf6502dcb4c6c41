"""`drope fetch`: all that a recipe needs of the Hugging Face Hub into its local cache, then looked for offline."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from data_prep.config import SourceConfig
from eval.config import EvaluationConfig
from eval.tasks.hub import fetch_data, offline
from pipeline.errors import RecipeError, StageFailed, exit_code
from pipeline.recipe.hub_errors import hub_error
from pipeline.recipe.model_source import is_hub_id, resolve_model
from pipeline.recipe.recipe import Recipe

log = logging.getLogger(__name__)

_PATIENCE = 20  # seconds
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


@dataclass(frozen=True)
class Found:
    """An asset in the cache, or on the disk. files, bytes: what was brought for it; none where it was there before."""

    asset: Asset
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class State:
    """An asset and whether it is on this machine. lack: why it is not, None if it is."""

    asset: Asset
    lack: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = ("kind", "name", "where", "repository", "optional", "remote")
        return {name: getattr(self.asset, name) for name in told} | {"there": self.lack is None, "lack": self.lack}

    def as_text(self) -> str:
        """One line, and a second one where fetching may not mend it: a path, or a revision that is not pinned."""
        state = "missing" if self.lack else "remote" if self.asset.remote else "there"
        told = self.lack is not None and (self.asset.bring is None or self.asset.kind == "data")
        return f"{state:<8} {self.asset}" + (f"\n         {self.lack}" if told else "")


def wanted(recipe: Recipe) -> list[Asset]:
    """All that the recipe's stages read, in their order. Nothing is looked for."""
    data = recipe.data
    assets = [_model(recipe), *(_source(number, source) for number, source in enumerate(data.sources))]
    files = {"data.tokenizer": data.tokenizer, "report.published": recipe.report.published}
    assets += [_file(where, path) for where, path in files.items() if path is not None]
    return assets + _evaluation(recipe.evaluation)


def listing(recipe: Recipe) -> list[State]:
    """What of it is on this machine; the Hub is not asked."""
    return [State(asset, _lack(asset)) for asset in wanted(recipe)]


def fetch(recipe: Recipe) -> list[Found]:
    """Bring what is not on this machine yet, one asset after the other, each then found without the Hub.

    Raises: when all have been tried, for those that the run cannot go without: RecipeError if one of them is not to be
    had or a path does not exist; else ConnectionError if the Hub did not answer; else StageFailed.
    """
    found, failures = [], []
    silence = cache(_silence)
    for asset in wanted(recipe):
        try:
            found.append(_fetched(asset, silence))
        except Exception as error:  # what the Hub's clients raise has no base class in common
            failure = hub_error(str(asset), error)
            log.debug("%s", asset, exc_info=error)
            if asset.optional:
                log.warning("%s: left out: %s", asset, _reason(asset, failure))
                continue
            log.warning("%s: not to be had", asset)
            failures.append((asset, failure))
    if failures:
        raise _together(failures, len(found) + len(failures))
    return found


def summary(found: list[Found]) -> str:
    """The last line: what was brought, and that the run needs no Hub."""
    brought = [each for each in found if each.files]
    amount = sum(each.bytes for each in brought)
    remote = [each.asset.name for each in found if each.asset.remote]
    but = f", but the jobs read {', '.join(remote)} over the network" if remote else ""
    return (
        f"{len(found)} of {len(found)} found with the Hub shut off, {sum(each.files for each in brought)} files of "
        f"{_size(amount)} brought: drope run works with HF_HUB_OFFLINE=1{but}"
    )


def _fetched(asset: Asset, silence: Callable[[], str | None]) -> Found:
    """silence: asked once there is something to bring. Raises: what `asset.find` and `asset.bring` raise."""
    if asset.bring is None:
        _look_again(asset)
    elif _lack(asset) is not None:
        return _brought(asset, asset.bring, silence())
    log.info("%s: %s", asset, "read over the network by the jobs themselves" if asset.remote else "is there")
    return Found(asset)


def _brought(asset: Asset, bring: Callable[[], object], silence: str | None) -> Found:
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise RecipeError("not in the Hub's cache, and HF_HUB_OFFLINE=1 forbids to ask the Hub; unset it to fetch")
    if silence is not None:
        raise ConnectionError(f"not in the Hub's cache, and {silence}")
    log.info("%s: fetching", asset)
    before = _cached(asset)
    bring()
    _look_again(asset)
    files, size = (after - earlier for after, earlier in zip(_cached(asset), before, strict=True))
    log.info("%s: %d files, %s brought", asset, files, _size(size))
    return Found(asset, files, size)


def _silence() -> str | None:
    """What to say if the Hub does not answer at all: its clients would try for half a minute, and for each asset."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils import get_session

    try:
        get_session().head(ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # see fetch
        return f"{ENDPOINT} does not answer ({error}); call drope fetch where there is a network"
    return None


def _lack(asset: Asset) -> str | None:
    """Why the asset is not on this machine; None if it is."""
    try:
        _look_again(asset)
    except Exception as error:  # see fetch
        return _reason(asset, hub_error(str(asset), error))
    return None


def _look_again(asset: Asset) -> None:
    """Look for it as a machine without a network does: on the disk, not in what this process has heard from the Hub."""
    from data_prep.reading.hub import forget

    forget()
    with offline():
        asset.find()
    forget()


def _together(failures: list[tuple[Asset, Exception]], total: int) -> Exception:
    """One error of a line for each failure, of the class that says most of what to do: bad input, network, all else."""
    lines = [f"{asset}: {_reason(asset, failure)}" for asset, failure in failures]
    head = [] if len(lines) == 1 else [f"{len(lines)} of {total} are not to be had:"]
    text = "\n    ".join([*head, *lines])
    if any(exit_code(failure) == 2 for _, failure in failures):
        return RecipeError(text)
    network = any(isinstance(failure, ConnectionError) for _, failure in failures)
    return ConnectionError(text) if network else StageFailed(text)


def _reason(asset: Asset, failure: Exception) -> str:
    """What an error says, without the name of the asset, which stands before it."""
    text = str(failure)
    for name in (asset, f"{asset.where} = {asset.name}", f"source {asset.name}", f"source hub:{asset.name}"):
        text = text.removeprefix(f"{name}: ")
    return text


def _cached(asset: Asset) -> tuple[int, int]:
    """Files and bytes that the Hub's cache holds of the asset's repository, whatever their revision."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    kind = "model" if asset.kind == "model" else "dataset"
    blobs = Path(HF_HUB_CACHE, repo_folder_name(repo_id=asset.repository or "", repo_type=kind), "blobs")
    sizes = [path.stat().st_size for path in blobs.glob("*") if path.suffix != ".incomplete"]
    return len(sizes), sum(sizes)


def _size(amount: int) -> str:
    return f"{amount / 1e9:.2f} GB" if amount >= 1e7 else f"{amount / 1e3:.1f} kB"


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
