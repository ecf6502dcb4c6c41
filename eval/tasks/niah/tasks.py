"""RULER's needle tasks as data, and the words that they ask with (arXiv:2404.06654, appendix B)."""

from dataclasses import dataclass
from typing import Literal

Haystack = Literal["noise", "essays", "needles"]
Word = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True)
class Task:
    """haystack: what the needles stand in. keys: needles on different keys, of which `queries` are asked. values: of
    each key. swept: whether the needle stands at given depths in turn."""

    haystack: Haystack
    key: Word = "words"
    value: Word = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1
    swept: bool = False

    @property
    def answers(self) -> int:
        """Values that are right."""
        return self.queries * self.values


TASKS: dict[str, Task] = {
    "niah_single_1": Task("noise"),
    "niah_single_2": Task("essays"),
    "niah_single_3": Task("essays", value="uuids"),
    "niah_multikey_1": Task("essays", keys=4),
    "niah_multikey_2": Task("needles"),
    "niah_multikey_3": Task("needles", key="uuids", value="uuids"),
    "niah_multivalue": Task("essays", values=4),
    "niah_multiquery": Task("essays", keys=4, queries=4),
    "niah_depth": Task("essays", swept=True),
    "lost_in_the_middle": Task("needles", swept=True),
}
"""RULER's eight; one needle at every depth of essays, as Kamradt (2023) looks at it; and one fact at every place among
others, as Liu et al. (2023, arXiv:2307.03172) do, in RULER's words."""

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{kind} afterwards.\n{context}\nWhat is the special magic {kind} for {query} mentioned in the provided text?"
)
_SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} for {query} mentioned in the provided "
    "text?"
)
_ONE_PREFIX = "The special magic {kind} for {query} mentioned in the provided text is"
_SEVERAL_PREFIX = "The special magic {kind} for {query} mentioned in the provided text are"


def needle(task: Task, key: str, value: str) -> str:
    """The sentence that states a fact."""
    return NEEDLE.format(kind=task.value, key=key, value=value)


def prompt(task: Task, context: str, keys: list[str]) -> tuple[str, str]:
    """The question about `context`, and the start of the answer that follows it after a space."""
    several = task.answers > 1
    query = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    kind = task.value if several else task.value[:-1]
    template, prefix = (_SEVERAL, _SEVERAL_PREFIX) if several else (_ONE, _ONE_PREFIX)
    return template.format(kind=kind, context=context, query=query), prefix.format(kind=kind, query=query)
