"""`drope fetch`: all that a recipe needs of the Hugging Face Hub into its local cache, then looked for offline."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.errors import RecipeError, StageFailed, exit_code
from pipeline.recipe.asset_states import find_offline, lack_of, reason_of
from pipeline.recipe.assets import Asset, assets_of
from pipeline.recipe.hub_errors import hub_error
from pipeline.recipe.recipe import Recipe

log = logging.getLogger(__name__)

_PATIENCE = 20  # seconds


@dataclass(frozen=True)
class Present:
    """An asset in the cache, or on the disk. files, bytes: what was brought for it; none where it was there before."""

    asset: Asset
    files: int = 0
    bytes: int = 0


def fetch(recipe: Recipe) -> list[Present]:
    """Bring what is not on this machine yet, one asset after the other, each then found without the Hub.

    Raises: when all have been tried, for those that the run cannot go without: RecipeError if one of them is not to be
    had or a path does not exist; else ConnectionError if the Hub did not answer; else StageFailed.
    """
    present, failures = [], []
    silence = cache(_silence)
    for asset in assets_of(recipe):
        try:
            present.append(_fetched(asset, silence))
        except Exception as error:  # what the Hub's clients raise has no base class in common
            failure = hub_error(str(asset), error)
            log.debug("%s", asset, exc_info=error)
            if asset.optional:
                log.warning("%s: left out: %s", asset, reason_of(asset, failure))
                continue
            log.warning("%s: not to be had", asset)
            failures.append((asset, failure))
    if failures:
        raise _together(failures, len(present) + len(failures))
    return present


def summary(present: list[Present]) -> str:
    """The last line: what was brought, and that the run needs no Hub."""
    files, size = sum(each.files for each in present), sum(each.bytes for each in present if each.files)
    remote = [each.asset.name for each in present if each.asset.remote]
    but = f", but the jobs read {', '.join(remote)} over the network" if remote else ""
    return (
        f"{len(present)} of {len(present)} found with the Hub shut off, {files} files of {_in_words(size)} brought: "
        f"drope run works with HF_HUB_OFFLINE=1{but}"
    )


def _fetched(asset: Asset, silence: Callable[[], str | None]) -> Present:
    """silence: asked once there is something to bring. Raises: what `asset.find` and `asset.bring` raise."""
    if asset.bring is None:
        find_offline(asset)
    elif lack_of(asset) is not None:
        return _brought(asset, asset.bring, silence())
    log.info("%s: %s", asset, "read over the network by the jobs themselves" if asset.remote else "is there")
    return Present(asset)


def _brought(asset: Asset, bring: Callable[[], object], silence: str | None) -> Present:
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise RecipeError("not in the Hub's cache, and HF_HUB_OFFLINE=1 forbids to ask the Hub; unset it to fetch")
    if silence is not None:
        raise ConnectionError(f"not in the Hub's cache, and {silence}")
    log.info("%s: fetching", asset)
    before = _cached(asset)
    bring()
    find_offline(asset)
    files, size = (after - earlier for after, earlier in zip(_cached(asset), before, strict=True))
    log.info("%s: %d files, %s brought", asset, files, _in_words(size))
    return Present(asset, files, size)


def _silence() -> str | None:
    """What to say if the Hub does not answer at all: its clients would try for half a minute, and for each asset."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils import get_session

    try:
        get_session().head(ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # see fetch
        return f"{ENDPOINT} does not answer ({error}); call drope fetch where there is a network"
    return None


def _together(failures: list[tuple[Asset, Exception]], total: int) -> Exception:
    """One error of a line for each failure, of the class that says most of what to do: bad input, network, all else."""
    lines = [f"{asset}: {reason_of(asset, failure)}" for asset, failure in failures]
    head = [] if len(lines) == 1 else [f"{len(lines)} of {total} are not to be had:"]
    text = "\n    ".join([*head, *lines])
    if any(exit_code(failure) == 2 for _, failure in failures):
        return RecipeError(text)
    network = any(isinstance(failure, ConnectionError) for _, failure in failures)
    return ConnectionError(text) if network else StageFailed(text)


def _cached(asset: Asset) -> tuple[int, int]:
    """Files and bytes that the Hub's cache holds of the asset's repository, whatever their revision."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    kind = "model" if asset.kind == "model" else "dataset"
    blobs = Path(HF_HUB_CACHE, repo_folder_name(repo_id=asset.repository or "", repo_type=kind), "blobs")
    sizes = [path.stat().st_size for path in blobs.glob("*") if path.suffix != ".incomplete"]
    return len(sizes), sum(sizes)


def _in_words(size: int) -> str:
    """Bytes in a unit for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e3:.1f} kB"
