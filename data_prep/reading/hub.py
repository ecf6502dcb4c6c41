"""Files of a data set on the Hugging Face Hub, at one commit, out of the local Hub cache or streamed."""

import glob
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.config import COMMIT, SourceConfig
from data_prep.errors import DataError
from data_prep.reading.files import HUB, unreachable
from data_prep.reading.records import one_line

if TYPE_CHECKING:
    from datasets import DatasetBuilder

log = logging.getLogger(__name__)

CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")  # they say which files a configuration has

_known_names: dict[tuple[str | None, ...], list[str]] = {}


def hub_files(source: SourceConfig) -> list[tuple[str, int, str]]:
    """(url, size in bytes, commit) of every file of the configuration and split, as `hf://datasets/...@COMMIT/...`.

    The list is that of the commit, whether files are in the local cache or not, so every machine finds the same one. A
    list that the cache has is not asked for again: with the whole data set in the cache no network is needed.

    Raises: DataError if the revision is no commit, there is no such data set, configuration or split, or access is
    denied, or if offline and something is not in the cache; ConnectionError if the Hub does not answer.
    """
    _refuse_moving_revision(source)
    sizes = _tree(source)
    place = (source.hub, source.revision, source.hub_config, source.hub_split)
    if place not in _known_names:  # of a commit, so never another; half a minute for the 27,000 files of FineWeb
        _known_names[place] = _split_files(source, sizes)
    names = _known_names[place]
    prefix = f"{HUB}datasets/{source.hub}@{source.revision}/"
    if _offline():
        missing = [name for name in names if cached_path(prefix + name) is None]
        if missing:
            raise DataError(
                f"source {source.label}: offline, and {len(missing)} of {len(names)} files are not in the Hub cache, "
                f"{missing[0]} first; {_download(source)}"
            )
    return [(prefix + name, sizes[name], source.revision) for name in names]


def fetch_files(source: SourceConfig) -> None:
    """Bring the files of the configuration and split into the local Hub cache, with all that `hub_files` reads.

    Raises: DataError as `hub_files` does, or if the disk has no room for them; ConnectionError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    listed = hub_files(source)
    missing = sum(size for url, size, _ in listed if cached_path(url) is None)
    there = next(folder for folder in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if missing > free:
        raise DataError(
            f"source {source.label}: {missing / 1e9:.1f} GB to bring, and {free / 1e9:.1f} GB are free at "
            f"{HF_HUB_CACHE}; make room, or set HF_HOME to another disk"
        )
    log.info("source %s: %d files, %.2f GB of them to bring", source.label, len(listed), missing / 1e9)
    prefix = f"{HUB}datasets/{source.hub}@{source.revision}/"
    wanted = [glob.escape(name) for name in (*CARDS, *(url.removeprefix(prefix) for url, _, _ in listed))]
    with _hub_errors(source):
        snapshot_download(source.hub, repo_type="dataset", revision=source.revision, allow_patterns=wanted)


def forget() -> None:
    """Forget what this process knows of data sets, for one who wants to see what the cache on the disk has."""
    _tree.cache_clear()
    _known_names.clear()


def cached_path(url: str) -> str | None:
    """Where the local Hub cache has a file, given as `hf://datasets/NAME@COMMIT/PATH`; None if it has not."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, rest = url.removeprefix(f"{HUB}datasets/").partition("@")
    commit, _, name = rest.partition("/")
    found = try_to_load_from_cache(repository, name, revision=commit, repo_type="dataset")
    return found if isinstance(found, str) else None


def _refuse_moving_revision(source: SourceConfig) -> None:
    if source.revision and re.fullmatch(COMMIT, source.revision):
        return
    name = source.revision or "main"
    commit = _cached_commit(source, name) if _offline() else _commit(source, name)
    pin = f"pin it: revision: {commit}" if commit else "pin it: set revision to a commit of 40 hexadecimal digits"
    raise DataError(f"source {source.label}: revision: {name} moves; {pin}")


def _commit(source: SourceConfig, revision: str) -> str | None:
    from huggingface_hub import HfApi

    try:
        with _hub_errors(source):
            return HfApi().dataset_info(source.hub, revision=revision).sha
    except ConnectionError:
        return _cached_commit(source, revision)


def _cached_commit(source: SourceConfig, revision: str) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"datasets--{source.hub.replace('/', '--')}" / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None


@cache
def _tree(source: SourceConfig) -> dict[str, int]:
    """Size of every file of the commit."""
    from huggingface_hub import HfApi, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.hf_api import RepoFile

    with _hub_errors(source):
        try:
            entries = get_cached_repo_tree(source.hub, repo_type="dataset", revision=source.revision)
        except CachedRepoTreeNotFoundError:
            if _offline():
                raise DataError(
                    f"source {source.label}: offline, and the Hub cache has no list of its files; {_download(source)}"
                ) from None
            listed = HfApi().list_repo_tree(source.hub, repo_type="dataset", revision=source.revision, recursive=True)
            entries = list(listed)
    return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


def _split_files(source: SourceConfig, sizes: dict[str, int]) -> list[str]:
    """Names of the files of the source's configuration and split, as the `datasets` library tells them.

    It reads the data set's card and looks at names, so a folder of empty files with the same names is enough.
    """
    with tempfile.TemporaryDirectory(prefix="hub-names-") as folder:
        root = Path(folder, "names").resolve()
        for name in sizes:
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            card = _card(source, name) if name in CARDS else b""
            file.write_bytes(card)
        splits = _builder(source, root, Path(folder, "cache")).config.data_files or {}
        if source.hub_split not in splits:
            raise _unknown(source, "hub_split", source.hub_split, [str(split) for split in splits])
        found = [str(file) for file in splits[source.hub_split]]
        outside = [file for file in found if not file.startswith(f"{root}/")]
        if outside:
            raise DataError(f"source {source.label}: lists a file outside its repository, {outside[0]}; give its path")
        return [file.removeprefix(f"{root}/") for file in found]


def _builder(source: SourceConfig, root: Path, cache: Path) -> "DatasetBuilder":
    import datasets
    from datasets.exceptions import DatasetsError

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset_builder(str(root), source.hub_config, cache_dir=str(cache))
    except (ValueError, OSError, DatasetsError) as error:
        names = _configurations(root)
        if names and source.hub_config not in names:
            raise _unknown(source, "hub_config", source.hub_config, names) from error
        raise DataError(f"source {source.label}: not a data set of text files ({one_line(error)})") from error
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _configurations(root: Path) -> list[str]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return list(datasets.get_dataset_config_names(str(root)))
    except (ValueError, OSError, DatasetsError):
        return []


def _card(source: SourceConfig, name: str) -> bytes:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    path = try_to_load_from_cache(source.hub, name, revision=source.revision, repo_type="dataset")
    if not isinstance(path, str):
        if _offline():
            raise DataError(f"source {source.label}: offline, and {name} is not in the Hub cache; {_download(source)}")
        with _hub_errors(source):
            path = hf_hub_download(source.hub, name, revision=source.revision, repo_type="dataset")
    return Path(path).read_bytes()


@contextmanager
def _hub_errors(source: SourceConfig) -> Iterator[None]:
    """Turn what the Hub's client raises into a DataError for a wrong request, else into a ConnectionError."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except DataError:
        raise
    except GatedRepoError as error:
        raise DataError(
            f"source {source.label}: the data set is gated; accept its terms on the Hub and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"source {source.label}: the Hub has no such data set, or it is private; log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(f"source {source.label}: the data set has no revision {source.revision}") from error
    except HFValidationError as error:
        raise DataError(f"source {source.label}: not the name of a data set ({one_line(error)})") from error
    except Exception as error:  # httpx and the Hub's client have no base class in common
        raise unreachable(source.label, error) from error


def _unknown(source: SourceConfig, key: str, value: str | None, known: list[str]) -> DataError:
    nearest = get_close_matches(value or "", known, n=1)
    hint = f"; nearest: {nearest[0]}" if nearest else ""
    there = ", ".join(known) or "none"
    return DataError(f"source {source.label}: no {key} {value!r}; there are {there}{hint}")


def _download(source: SourceConfig) -> str:
    command = f"hf download {source.hub} --repo-type dataset --revision {source.revision}"
    return f"run `{command}` where there is a network, with --include and a pattern where the data set has more files"


def _offline() -> bool:
    from huggingface_hub.constants import is_offline_mode

    return is_offline_mode()
