import random
from itertools import pairwise

import pytest

from data_prep.reading.passages import LINE, PARAGRAPH, Passages, Separator
from data_prep.reading.streams import Damage

ENDS = {LINE: (b"\n",), PARAGRAPH: (b"\n\n", b"\n\r\n")}

FOR_GOOD = Damage("cut", None)
FOR_NOW = Damage("input/output error", None, for_good=False)


class Blocks:
    """A stream out of memory, in blocks of some bytes, that may be damaged at its end."""

    def __init__(self, content: bytes, block: int, damaged: Damage | None) -> None:
        self.damage: Damage | None = None
        self._content = content
        self._block = block
        self._damaged = damaged

    def __enter__(self) -> "Blocks":
        return self

    def __exit__(self, *error: object) -> None:
        self._content = b""

    def skip(self, count: int) -> None:
        self._content = self._content[count:]

    def read(self) -> bytes:
        block, self._content = self._content[: self._block], self._content[self._block :]
        if not block:
            self.damage = self._damaged
        return block


def read(
    content: bytes,
    separator: Separator,
    borders: list[int],
    block: int,
    *,
    damaged: Damage | None = None,
    limit: int = 10**6,
):
    """The passages of all ranges, and the places of damage that they note; the last range is open."""
    passages, places = [], []
    for start, stop in pairwise([*borders, None]):
        in_range = Passages(Blocks(content, block, damaged), separator, start, stop, limit)
        passages += list(in_range)
        places += [] if in_range.damaged_at is None else [in_range.damaged_at]
    return passages, places


@pytest.mark.parametrize("separator", [LINE, PARAGRAPH], ids=["line", "paragraph"])
@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_ranges_hold_every_unit_once_and_note_damage_once(separator: Separator, block: int):
    draw = random.Random(0)
    parts = [b"a", "é".encode(), b"\n", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r"]
    for _ in range(400):
        content = b"".join(draw.choice(parts) for _ in range(draw.randint(0, 20)))
        whole, _ = read(content, separator, [0], 1000)
        ended = [
            passage for passage in whole if content[passage.position + passage.length :].startswith(ENDS[separator])
        ]
        borders = sorted({0, *(draw.randint(0, len(content) + 2) for _ in range(draw.randint(0, 8)))})
        assert read(content, separator, borders, block) == (whole, []), (content, borders)
        assert all(content[passage.position :].startswith(passage.content) for passage in whole)
        passages, places = read(content, separator, borders, block, damaged=FOR_GOOD)
        assert passages == ended and len(places) == 1, (content, borders)
        assert all(passage.position < places[0] for passage in passages)
        passages, places = read(content, separator, borders, block, damaged=FOR_NOW)
        behind = [border for border in borders if border >= len(content)]
        assert passages == ended and len(places) >= 1 + len(behind[1:]), (content, borders)


@pytest.mark.parametrize("separator", [LINE, PARAGRAPH], ids=["line", "paragraph"])
@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_a_unit_over_the_limit_has_its_length_but_no_content(separator: Separator, block: int):
    end = b"\n\n" if separator is PARAGRAPH else b"\n"
    parts = [b"a" * 5, b"b" * 6, b"c" * 50, b"d"]
    passages, _ = read(end.join(parts), separator, [0, 9, 30], block, limit=5)
    assert [(passage.content, passage.length) for passage in passages] == [
        (parts[0], 5),
        (None, 6),
        (None, 50),
        (parts[3], 1),
    ]
