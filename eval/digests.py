"""Digests of texts and files: equal ones say that scores were computed from the same things."""

import hashlib
from pathlib import Path

_SAMPLED_ABOVE = 64 * 2**20
_BLOCK = 64 * 2**10
_BLOCKS = 256


def digest_text(text: str) -> str:
    """SHA-256 of `text`, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_files(paths: list[Path]) -> str:
    """SHA-256 over names and contents of files.

    Of a file above 64 MiB (weights, token shards) its size and 256 blocks spread evenly are taken: training moves every
    weight, so a changed model is seen without reading many gigabytes.
    """
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        size = path.stat().st_size
        total.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _SAMPLED_ABOVE:
                while block := stream.read(2**20):
                    total.update(block)
                continue
            for index in range(_BLOCKS):
                stream.seek(index * (size - _BLOCK) // (_BLOCKS - 1))
                total.update(stream.read(_BLOCK))
    return total.hexdigest()
