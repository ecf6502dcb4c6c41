"""Ids of many documents as two arrays."""

from dataclasses import dataclass
from itertools import chain

import numpy


@dataclass(frozen=True)
class Tokens:
    """Ids of several documents in a row.

    ids: uint32 [tokens]; offsets: int64 [documents + 1], rising from 0 to the number of tokens. The arrays may be
    read-only.
    """

    ids: numpy.ndarray
    offsets: numpy.ndarray

    def document(self, index: int) -> numpy.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def flat(documents: list[list[int]]) -> Tokens:
    """The ids of each document as one array."""
    offsets = numpy.zeros(len(documents) + 1, dtype=numpy.int64)
    numpy.cumsum([len(ids) for ids in documents], out=offsets[1:])
    ids = numpy.fromiter(chain.from_iterable(documents), dtype=numpy.uint32, count=int(offsets[-1]))
    return Tokens(ids, offsets)


def join(parts: list[Tokens]) -> Tokens:
    """The documents of all parts, of which there is at least one, in their order."""
    if len(parts) == 1:
        return parts[0]
    starts = numpy.cumsum([0, *(len(part.ids) for part in parts)])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
    return Tokens(numpy.concatenate([part.ids for part in parts]), numpy.concatenate([*offsets, starts[-1:]]))
