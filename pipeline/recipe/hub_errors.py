"""What the Hub's clients raise, as the three ways that a command can end."""

from collections.abc import Iterator

from foundation.full_disk import is_full_disk
from pipeline.errors import RecipeError, StageFailed, exit_code


def hub_error(where: str, error: Exception) -> Exception:
    """The error to raise instead of one of huggingface_hub or datasets: a single line that begins with `where`.

    RecipeError for what the Hub has not or does not give, ConnectionError where it does not answer, StageFailed for a
    full disk and all else. One that is a line for the user already stays as it is.
    """
    if exit_code(error) == 2:
        return error
    chain = list(_chain(error))
    if (refused := _refused(chain)) is not None:
        return RecipeError(f"{where}: {refused}")
    if is_full_disk(error):
        from huggingface_hub.constants import HF_HUB_CACHE

        return StageFailed(f"{where}: the disk is full below {HF_HUB_CACHE}; make room, or set HF_HOME to another disk")
    if type(error) in (ConnectionError, StageFailed):
        return error
    if _unreachable(chain):
        return ConnectionError(f"{where}: the Hub does not answer ({_one_line(error)}); try again")
    return StageFailed(f"{where}: {_one_line(error)}")


def _refused(chain: list[BaseException]) -> str | None:
    """Why it is of no use to ask again, None if it may be."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    reasons = {
        OfflineModeIsEnabled: "not (all of it) in the Hub's cache of this machine, and HF_HUB_OFFLINE=1; run "
        "`drope fetch RECIPE` where there is a network",
        GatedRepoError: "is gated; accept its terms on the Hub and log in with `hf auth login`",
        RepositoryNotFoundError: "the Hub has no such repository, or it is private; mend the name, or log in with "
        "`hf auth login`",
        RevisionNotFoundError: "the repository has no such revision; give a branch, tag or commit that it has",
    }
    for kind, reason in reasons.items():  # a gated repository is one that is not found, so its own reason comes first
        if any(isinstance(each, kind) for each in chain):
            return reason
    for each in chain:
        if isinstance(each, DatasetNotFoundError):
            return f"{_one_line(each)}; log in with `hf auth login` if it is private or gated"
        if isinstance(each, HFValidationError):
            return f"no name of a repository ({_one_line(each)})"
        if isinstance(each, ValueError) and "BuilderConfig" in str(each):
            return _one_line(each)
    return None


def _unreachable(chain: list[BaseException]) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    network = (ConnectionError, TimeoutError, HfHubHTTPError, LocalEntryNotFoundError)
    return any(isinstance(each, network) or _of_http_client(each) for each in chain)


def _of_http_client(error: BaseException) -> bool:
    """By name, since which HTTP client it is has changed from one version of huggingface_hub to the next."""
    return any(kind.__module__.startswith(("httpx", "httpcore")) for kind in type(error).__mro__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
