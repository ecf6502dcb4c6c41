"""The demo's documents: facts that can only be known from the document itself.

A document is a stream of statements `name food`. Every document draws its own people and the food that each of them
likes, so that the food after a name must be recalled from where the name stood before. A statement is written one to
three times in a row. Pure functions of a seed: the same arguments give the same text.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path

from foundation.files import atomic_path

NAMES = tuple(
    """anna ben carla david emma frank greta henry ida jonas karin leo maria nils olga paul quentin rosa simon tina
    ulrich vera walter xenia yusuf zoe amir bella cyrus dora elias fiona gustav hanna igor julia kurt lena milan
    nora oscar petra ralf sara tomas ursula viktor wendy""".split()  # noqa: SIM905
)
FOODS = tuple(
    """apple bread cheese dates eggs figs garlic honey icecream jam kiwi lemon mango nuts olives pasta quince rice
    soup tofu udon vanilla walnut yoghurt zucchini almond basil carrot dill endive fennel ginger hummus kale leek
    melon noodles onion peach radish spinach tomato pepper plum pear cherry salad toast""".split()  # noqa: SIM905
)
PEOPLE = (2, 32)
"""Fewest and most people in a document."""
WORDS = (128, 1024)
"""Fewest and most words of a document."""
REPEATS = (1, 1, 2, 3)
"""How often a statement is written in a row: one entry is drawn for each."""


def document(rng: random.Random) -> str:
    """One document; its length is drawn log-uniformly from `WORDS`."""
    shortest, longest = map(math.log, WORDS)
    length = int(math.exp(rng.uniform(shortest, longest)))
    likes = {name: rng.choice(FOODS) for name in rng.sample(NAMES, rng.randint(*PEOPLE))}
    words: list[str] = []
    name = ""
    while len(words) < length:
        name = rng.choice([other for other in likes if other != name])
        words += [name, likes[name]] * rng.choice(REPEATS)
    return " ".join(words[:length])


def documents(seed: int, tokens: int) -> Iterator[str]:
    """Documents until they hold `tokens` tokens, one end-of-document token for each included."""
    rng, count = random.Random(seed), 0
    while count < tokens:
        text = document(rng)
        count += text.count(" ") + 2
        yield text


def write_parquet(path: Path, *, seed: int, tokens: int) -> None:
    """Writes the documents as a Parquet file with the columns id and text; the same arguments give the same bytes."""
    import pyarrow
    import pyarrow.parquet

    texts = list(documents(seed, tokens))
    table = pyarrow.table({"id": [f"facts-{seed}-{number}" for number in range(len(texts))], "text": texts})
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary, compression="zstd", row_group_size=1024)
