"""Data sets in the Hub's cache of this machine: nothing but `fetch_data` downloads."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from eval.errors import EvaluationError

if TYPE_CHECKING:
    from datasets import Dataset

_NOISE = ("datasets.load", "datasets.packaged_modules.cache.cache")
"""These warn that they use the cache, which is what is wanted."""


@contextmanager
def offline() -> Iterator[None]:
    """Let `datasets` and the Hub's client look into their caches alone, as HF_HUB_OFFLINE=1 does for a whole process: a
    node without a network would otherwise wait for every request."""
    import datasets
    import huggingface_hub.constants as hub

    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    noise = {name: logging.getLogger(name).level for name in _NOISE}
    datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    for name in noise:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before
        for name, level in noise.items():
            logging.getLogger(name).setLevel(level)


def cached_split(path: str, name: str | None, split: str, field: str) -> "Dataset":
    """A split of a Hub data set from the cache. `field` of the recipe asks for it.

    Raises: EvaluationError where the cache has it not, with the way to bring it there.
    """
    from datasets import load_dataset

    try:
        with offline():
            return load_dataset(path, name, split=split)
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # what `datasets` raises offline varies
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        config = "" if name is None else f", {name!r}"
        raise EvaluationError(
            f"{field}: {path} is not in this machine's Hub cache ({reason}); name a local file, or where there is a "
            f'network: python -c "import datasets; datasets.load_dataset({path!r}{config})"'
        ) from None


def fetch_data(path: str, name: str | None) -> None:
    """Bring all splits of a Hub data set into the cache that `cached_split` and lm-eval's tasks read.

    Raises: what `datasets` raises where the Hub has it not or does not answer.
    """
    from datasets import load_dataset

    load_dataset(path, name)
