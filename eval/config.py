"""What to evaluate: variants, context factors, tasks. Importing this module loads no heavy library."""

import difflib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, get_args

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Variant = Literal["rope", "pi", "ntk", "dynamic_ntk", "yarn", "longrope2", "crop", "drope", "drope_scaled", "control"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
SCALINGS: tuple[Variant, ...] = ("pi", "ntk", "dynamic_ntk", "yarn", "longrope2")
"""Variants that change RoPE's frequencies by the context factor and are RoPE as it is at 1x."""
LENGTH_DEPENDENT: tuple[Variant, ...] = ("dynamic_ntk", "longrope2")
"""Variants whose rotation of a token depends on how many tokens are read at once."""
OF_THE_SOURCE: tuple[Variant, ...] = ("rope", *SCALINGS, "crop")
"""Variants of the source model as it is, without training."""
NiahTask = Literal[
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "niah_depth",
    "lost_in_the_middle",
]
NIAH_TASKS: tuple[NiahTask, ...] = get_args(NiahTask)
SWEPT_TASKS: tuple[NiahTask, ...] = ("niah_depth", "lost_in_the_middle")
"""Tasks whose one needle stands at every depth in turn, equally often."""
LongBenchTask = Literal["multifieldqa_en", "musique", "gov_report", "lcc"]
LONGBENCH_TASKS: tuple[LongBenchTask, ...] = get_args(LongBenchTask)
LmTask = Literal["arc_easy", "arc_challenge", "hellaswag", "openbookqa", "piqa", "winogrande"]
LM_TASKS: tuple[LmTask, ...] = get_args(LmTask)
"""Tasks that the harness takes from the Hub's cache where no file is given."""
OWN_TASKS = ("loss", "recall", *NIAH_TASKS, *LONGBENCH_TASKS)
"""Names that a harness task may not bear."""


MOST_FACTOR = 64
"""The largest context factor: a larger number is a length in tokens that was taken for a factor."""


class _Section(BaseModel):
    """A section of the recipe. A field that was renamed is read under both names, and in what a run records (manifests,
    results.json) it keeps the old one: what was finished before stays finished."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _one_name_each(cls, values: object) -> object:
        for name, field in cls.model_fields.items():
            old = field.serialization_alias
            if isinstance(values, dict) and old in values and name in values:
                raise ValueError(f"{old} is the old name of {name}; give one of the two")
        return values


class LossConfig(_Section):
    """Next-token loss on held-out text."""

    tokens: int = Field(65_536, ge=1, description="Held-out tokens to score at each length; at least one row is.")


class RecallConfig(_Section):
    """Needle in a haystack on generated samples: several facts among others, one of them asked at the end."""

    samples: int = Field(200, ge=1, description="Samples per length.")
    needles: int = Field(4, ge=1, description="Facts stated once in each sample, at random depths; one is asked.")
    fact: str = Field(description="Text of a fact, with {key} and {value} and its own trailing space or newline.")
    question: str = Field(description="Text at the end of a sample, with {key}; the value follows it.")
    keys: tuple[str, ...] | Path = Field(description='Keys, or a JSON file {"keys": [...], "values": [...]}.')
    values: tuple[str, ...] | Path = Field(description='Values, or a JSON file {"keys": [...], "values": [...]}.')
    haystack: Literal["facts", "text"] = Field("facts", description="Filler: facts on other keys, or held-out text.")
    other_keys: int | None = Field(
        None, ge=1, description="Distinct other keys in a haystack of facts; all of them if not given."
    )

    @field_validator("fact", "question")
    @classmethod
    def _placeholders(cls, template: str, info: ValidationInfo) -> str:
        required = {"key", "value"} if info.field_name == "fact" else {"key"}
        try:
            placeholders = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        except ValueError as error:
            raise ValueError(f"{template!r} is no template: {error}") from None
        if placeholders != required:
            names = " and ".join(f"{{{name}}}" for name in sorted(required))
            raise ValueError(f"{template!r} must have {names} and no other placeholder")
        return template

    @field_validator("keys", "values")
    @classmethod
    def _distinct(cls, words: tuple[str, ...] | Path) -> tuple[str, ...] | Path:
        if isinstance(words, tuple):
            if not words or not all(words):
                raise ValueError("must have at least one word and no empty one")
            if len(set(words)) < len(words):
                raise ValueError("has a word twice")
        return words


class LongRopeConfig(_Section):
    """Rescale factors of LongRoPE2 (arXiv:2502.20082): given, or searched on held-out text that is not scored."""

    factors: Path | None = Field(
        None, description='JSON file {"4": [...]}: by context factor one rescale factor per pair; null: searched.'
    )
    tokens: int = Field(8_192, ge=1, description="Held-out tokens that a candidate is judged by; at least one row is.")
    population: int = Field(24, ge=4, description="Candidates of a generation.")
    generations: int = Field(12, ge=1, description="Generations of the search.")


class NiahConfig(_Section):
    """Needles in a haystack in RULER's form (arXiv:2404.06654): the answer is generated and matched as a string."""

    tasks: tuple[NiahTask, ...] = Field(
        (
            "niah_multiquery",
            "niah_multikey_1",
            "niah_multikey_2",
            "niah_multikey_3",
            "niah_multivalue",
            "niah_single_1",
        ),
        min_length=1,
        description="RULER's tasks; niah_depth and lost_in_the_middle put one needle at every depth in turn, among "
        "essays and among other needles.",
    )
    samples: int = Field(100, ge=1, description="Samples per task and length.")
    context_factors: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=1,
        validation_alias=AliasChoices("context_factors", "lengths"),
        serialization_alias="lengths",
        description="Context factors, rising; null: evaluation.context_factors.",
    )
    new_tokens: int = Field(128, ge=1, description="Tokens left for the answer; a sample and these fill the length.")
    depths: int = Field(11, ge=2, description="Depths of niah_depth and lost_in_the_middle, from 0 to 1.")
    essays: Path | None = Field(
        None,
        description="Text for the haystacks of essays: .txt, or .jsonl with text in each line; null: Paul Graham's "
        "essays from the Hub's cache (baber/paul_graham_essays).",
    )

    @field_validator("context_factors")
    @classmethod
    def _fit(cls, factors: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if factors is None else rising(not_tokens(factors))


class LongBenchConfig(_Section):
    """LongBench (arXiv:2308.14508) with lm-eval's prompts and metrics."""

    tasks: tuple[LongBenchTask, ...] = Field(LONGBENCH_TASKS, min_length=1, description="Tasks of LongBench.")
    folder: Path | None = Field(
        None, description="Folder with LongBench's own TASK.jsonl; null: the Hub's cache (Xnhyacinth/LongBench)."
    )
    limit: int | None = Field(None, ge=1, description="Items to score, from the first; all if not given.")
    factor: int | None = Field(
        None,
        ge=1,
        description="Context factor: longer prompts lose their middle, as in LongBench; null: the longest of "
        "evaluation.context_factors.",
    )

    @field_validator("factor")
    @classmethod
    def _fit(cls, factor: int | None) -> int | None:
        return None if factor is None else not_tokens((factor,))[0]


class HarnessTask(_Section):
    """A multiple-choice task for lm-eval, from a local file or lm-eval's own."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="Name of the task in the results.")
    path: Path | None = Field(
        None,
        description="JSONL file with query, choices, gold or with context_options, continuation, gold in each line; "
        f"null: lm-eval's own task with its data from the Hub's cache, for {', '.join(LM_TASKS)}.",
    )
    limit: int | None = Field(None, ge=1, description="Items to score, from the first; all if not given.")
    num_fewshot: int = Field(0, ge=0, description="Solved examples before each item, drawn from the other items.")
    suffix: str = Field("", description="Text after the query, before the space and the choice (ARC: '\\nAnswer:').")

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name in OWN_TASKS:
            raise ValueError(f"{name!r} is the name of one of our own tasks; choose another")
        return name

    @model_validator(mode="after")
    def _known(self) -> "HarnessTask":
        if self.path is None and self.name not in LM_TASKS:
            raise ValueError(f"{self.name} needs a path; without one: {nearest(self.name, LM_TASKS)}")
        if self.path is None and self.suffix:
            raise ValueError("suffix goes with a path: lm-eval's own task has its own prompt")
        return self


class EvaluationConfig(_Section):
    """The matrix variant x task x length, and how it is computed."""

    variants: tuple[Variant, ...] = Field(
        ("rope", "pi", "ntk", "yarn", "drope"), min_length=1, description="Model variants to score."
    )
    context_factors: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 4, 8),
        min_length=1,
        validation_alias=AliasChoices("context_factors", "lengths"),
        serialization_alias="lengths",
        description="Evaluated lengths as multiples of the training length, rising.",
    )
    batch_tokens: int = Field(
        16_384, ge=1, description="Tokens per forward pass; a longer row goes alone. On a CPU about 2048 is fastest."
    )
    softmax_scale_c: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="c in the softmax scale beta = 1 + c ln s of drope_scaled."
    )
    longrope2: LongRopeConfig = Field(
        default_factory=LongRopeConfig, description="Where the factors of variant longrope2 come from."
    )
    loss: LossConfig = Field(default_factory=LossConfig, description="Loss against context length.")
    recall: RecallConfig | None = Field(None, description="Recall of facts against context length; none if not given.")
    niah: NiahConfig | None = Field(None, description="Needles in a haystack as in RULER; none if not given.")
    longbench: LongBenchConfig | None = Field(None, description="Tasks of LongBench; none if not given.")
    harness: tuple[HarnessTask, ...] = Field(
        (), description="Multiple-choice tasks for lm-eval, at the training length."
    )
    missing_data: Literal["refuse", "leave_out"] = Field(
        "refuse",
        description="Tasks whose data this machine lacks: refuse the evaluation before it starts, or run the others "
        "and say what was left out.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the models run; auto: an accelerator.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Number format of weights and activations.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the recall samples and of the harness's example order.")

    @field_validator("context_factors")
    @classmethod
    def _fit(cls, factors: tuple[int, ...]) -> tuple[int, ...]:
        return rising(not_tokens(factors))

    @model_validator(mode="after")
    def _unique(self) -> "EvaluationConfig":
        named: dict[str, tuple[str, ...]] = {
            "variants": self.variants,
            "niah.tasks": self.niah.tasks if self.niah else (),
            "longbench.tasks": self.longbench.tasks if self.longbench else (),
            "harness": tuple(task.name for task in self.harness),
        }
        for field, names in named.items():
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{field} names {', '.join(twice)} twice")
        return self

    def without(self, names: Iterable[str]) -> "EvaluationConfig":
        """The same without these tasks."""
        out = set(names)
        kept: dict[str, object] = {"harness": tuple(task for task in self.harness if task.name not in out)}
        for field in ("niah", "longbench"):
            if section := getattr(self, field):
                tasks = tuple(name for name in section.tasks if name not in out)
                kept[field] = section.model_copy(update={"tasks": tasks}) if tasks else None
        return self.model_copy(update=kept)

    @property
    def niah_factors(self) -> tuple[int, ...]:
        """Context factors of the needle tasks; none where there are no such tasks."""
        return () if self.niah is None else self.niah.context_factors or self.context_factors

    @property
    def longbench_factor(self) -> int:
        """Context factor that LongBench's prompts are cut to."""
        given = self.longbench.factor if self.longbench else None
        return given or self.context_factors[-1]

    @property
    def longest(self) -> int:
        """The largest context factor that anything is scored at."""
        return max(self.context_factors[-1], *self.niah_factors, self.longbench_factor if self.longbench else 1)


def not_tokens(factors: tuple[int, ...]) -> tuple[int, ...]:
    """Raises: ValueError for a context factor that must be meant as a length in tokens."""
    if max(factors) > MOST_FACTOR:
        raise ValueError(
            f"context factors are multiples of the training context (2: twice its length), {MOST_FACTOR} at most; "
            f"{max(factors)} looks like a number of tokens"
        )
    return factors


def rising(factors: tuple[int, ...]) -> tuple[int, ...]:
    """Raises: ValueError unless each is larger than the one before."""
    if any(left >= right for left, right in pairwise(factors)):
        raise ValueError(f"{list(factors)} must rise, without repeats")
    return factors


def nearest(name: str, known: tuple[str, ...]) -> str:
    """'did you mean X?', or all that is known where nothing is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
