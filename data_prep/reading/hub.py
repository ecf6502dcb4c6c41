"""Files of a data set on the Hugging Face Hub, at one commit, out of the local Hub cache or streamed."""

import glob
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.config import COMMIT, SourceConfig
from data_prep.errors import DataError
from data_prep.reading.files import unreachable
from data_prep.reading.hub_cache import HUB, cached_path
from data_prep.reading.records import one_line
from foundation.errors import DiskError
from foundation.full_disk import explained_full_disk, free_bytes

if TYPE_CHECKING:
    from datasets import DatasetBuilder

log = logging.getLogger(__name__)

CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")  # they say which files a configuration has


@dataclass(frozen=True)
class HubSplit:
    """A configuration and split of a data set, at a commit."""

    repository: str
    commit: str
    config: str | None
    split: str
    label: str
    """The source's place as configured, for messages."""

    @property
    def prefix(self) -> str:
        """What the URLs of its files begin with."""
        return f"{HUB}datasets/{self.repository}@{self.commit}/"


def hub_files(source: SourceConfig) -> list[tuple[str, int, str]]:
    """(url, size in bytes, commit) of every file of the configuration and split, as `hf://datasets/...@COMMIT/...`.

    The list is that of the commit, whether files are in the local cache or not, so every machine gets the same one. A
    list that the cache has is not asked for again: with the whole data set in the cache no network is needed.

    Raises: DataError if the revision is no commit, there is no such data set, configuration or split, or access is
    denied, or if offline and something is not in the cache; ConnectionError if the Hub does not answer.
    """
    return _files(_pinned(source))


def fetch_files(source: SourceConfig) -> None:
    """Bring the files of the configuration and split into the local Hub cache, with all that `hub_files` reads.

    Raises: DataError as `hub_files` does, or if the disk has no room for them; DiskError if it fills all the same;
    ConnectionError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    hub = _pinned(source)
    files = _files(hub)
    missing = sum(size for url, size, _ in files if cached_path(url) is None)
    free = free_bytes(Path(HF_HUB_CACHE))
    if missing > free:
        raise DataError(
            f"source {hub.label}: {missing / 1e9:.1f} GB to bring, and {free / 1e9:.1f} GB are free at "
            f"{HF_HUB_CACHE}; make room, or set HF_HOME to another disk"
        )
    log.info("source %s: %d files, %.2f GB of them to bring", hub.label, len(files), missing / 1e9)
    patterns = [glob.escape(name) for name in (*CARDS, *(url.removeprefix(hub.prefix) for url, _, _ in files))]
    full_disk = explained_full_disk(Path(HF_HUB_CACHE), "make room, or set HF_HOME to another disk")
    with _hub_errors(hub.label, hub.commit), full_disk:
        snapshot_download(hub.repository, repo_type="dataset", revision=hub.commit, allow_patterns=patterns)


def forget() -> None:
    """Forget what this process knows of data sets, for one who wants to see what the cache on the disk has."""
    _tree.cache_clear()
    _split_files.cache_clear()


def _pinned(source: SourceConfig) -> HubSplit:
    """Raises: DataError if the revision is a branch or a tag, which move; it names the commit to write instead."""
    repository, revision = source.hub or "", source.revision or "main"
    if not re.fullmatch(COMMIT, revision):
        commit = _cached_commit(repository, revision) if _offline() else _commit(source.label, repository, revision)
        pin = f"pin it: revision: {commit}" if commit else "pin it: set revision to a commit of 40 hexadecimal digits"
        raise DataError(f"source {source.label}: revision: {revision} moves; {pin}")
    return HubSplit(repository, revision, source.hub_config, source.hub_split, source.label)


def _commit(label: str, repository: str, revision: str) -> str | None:
    from huggingface_hub import HfApi

    try:
        with _hub_errors(label, revision):
            return HfApi().dataset_info(repository, revision=revision).sha
    except ConnectionError:
        return _cached_commit(repository, revision)


def _cached_commit(repository: str, revision: str) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}" / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None


def _files(hub: HubSplit) -> list[tuple[str, int, str]]:
    sizes = _tree(hub)
    names = _split_files(hub)
    if _offline():
        missing = [name for name in names if cached_path(hub.prefix + name) is None]
        if missing:
            raise DataError(
                f"source {hub.label}: offline, and {len(missing)} of {len(names)} files are not in the Hub cache, "
                f"{missing[0]} first; {_download(hub)}"
            )
    return [(hub.prefix + name, sizes[name], hub.commit) for name in names]


@cache
def _tree(hub: HubSplit) -> dict[str, int]:
    """Size of every file of the commit."""
    from huggingface_hub import HfApi, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.hf_api import RepoFile

    with _hub_errors(hub.label, hub.commit):
        try:
            entries = list(get_cached_repo_tree(hub.repository, repo_type="dataset", revision=hub.commit))
        except CachedRepoTreeNotFoundError:
            if _offline():
                raise DataError(
                    f"source {hub.label}: offline, and the Hub cache has no list of its files; {_download(hub)}"
                ) from None
            tree = HfApi().list_repo_tree(hub.repository, repo_type="dataset", revision=hub.commit, recursive=True)
            entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


@cache  # of a commit, so never another; half a minute for the 27,000 files of FineWeb
def _split_files(hub: HubSplit) -> tuple[str, ...]:
    """Names of the files of the configuration and split, as the `datasets` library tells them.

    It reads the data set's card and looks at names, so a folder of empty files with the same names is enough.
    """
    with tempfile.TemporaryDirectory(prefix="hub-names-") as folder:
        root = Path(folder, "names").resolve()
        for name in _tree(hub):
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            card = _card(hub, name) if name in CARDS else b""
            file.write_bytes(card)
        splits = _builder(hub, root, Path(folder, "cache")).config.data_files or {}
        if hub.split not in splits:
            raise _unknown(hub, "hub_split", hub.split, [str(split) for split in splits])
        files = [str(file) for file in splits[hub.split]]
        outside = [file for file in files if not file.startswith(f"{root}/")]
        if outside:
            raise DataError(f"source {hub.label}: lists a file outside its repository, {outside[0]}; give its path")
        return tuple(file.removeprefix(f"{root}/") for file in files)


def _builder(hub: HubSplit, root: Path, cache: Path) -> "DatasetBuilder":
    import datasets
    from datasets.exceptions import DatasetsError

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset_builder(str(root), hub.config, cache_dir=str(cache))
    except (ValueError, OSError, DatasetsError) as error:
        names = _configurations(root)
        if names and hub.config not in names:
            raise _unknown(hub, "hub_config", hub.config, names) from error
        raise DataError(f"source {hub.label}: not a data set of text files ({one_line(error)})") from error
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


def _card(hub: HubSplit, name: str) -> bytes:
    from huggingface_hub import hf_hub_download

    path = cached_path(hub.prefix + name)
    if path is None:
        if _offline():
            raise DataError(f"source {hub.label}: offline, and {name} is not in the Hub cache; {_download(hub)}")
        with _hub_errors(hub.label, hub.commit):
            path = hf_hub_download(hub.repository, name, revision=hub.commit, repo_type="dataset")
    return Path(path).read_bytes()


@contextmanager
def _hub_errors(label: str, revision: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a DataError for a wrong request, else into a ConnectionError."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (DataError, DiskError):
        raise
    except GatedRepoError as error:
        raise DataError(
            f"source {label}: the data set is gated; accept its terms on the Hub and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"source {label}: the Hub has no such data set, or it is private; log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(f"source {label}: the data set has no revision {revision}") from error
    except HFValidationError as error:
        raise DataError(f"source {label}: not the name of a data set ({one_line(error)})") from error
    except Exception as error:  # httpx and the Hub's client have no base class in common
        raise unreachable(label, error) from error


def _unknown(hub: HubSplit, key: str, value: str | None, known: list[str]) -> DataError:
    nearest = get_close_matches(value or "", known, n=1)
    hint = f"; nearest: {nearest[0]}" if nearest else ""
    there = ", ".join(known) or "none"
    return DataError(f"source {hub.label}: no {key} {value!r}; there are {there}{hint}")


def _download(hub: HubSplit) -> str:
    command = f"hf download {hub.repository} --repo-type dataset --revision {hub.commit}"
    return f"run `{command}` where there is a network, with --include and a pattern where the data set has more files"


def _offline() -> bool:
    from huggingface_hub.constants import is_offline_mode

    return is_offline_mode()
