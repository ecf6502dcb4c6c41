"""Files of the Hugging Face Hub by their URL, and where its local cache has them."""

HUB = "hf://"


def cached_path(url: str) -> str | None:
    """Where the local Hub cache has a file, given as `hf://datasets/NAME@COMMIT/PATH`; None if it has not."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, rest = url.removeprefix(f"{HUB}datasets/").partition("@")
    commit, _, name = rest.partition("/")
    path = try_to_load_from_cache(repository, name, revision=commit, repo_type="dataset")
    return path if isinstance(path, str) else None
