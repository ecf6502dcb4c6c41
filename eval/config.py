"""What to evaluate: variants, lengths, tasks. Importing this module loads no heavy library."""

from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Variant = Literal["rope", "pi", "ntk", "dynamic_ntk", "yarn", "longrope2", "crop", "drope", "drope_scaled", "control"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
SCALINGS: tuple[Variant, ...] = ("pi", "ntk", "dynamic_ntk", "yarn", "longrope2")
"""Variants that change RoPE's frequencies by the context factor and are RoPE as it is at 1x."""
OF_THE_SOURCE: tuple[Variant, ...] = ("rope", *SCALINGS, "crop")
"""Variants of the source model as it is, without training."""
OWN_TASKS = ("loss", "recall")
"""Tasks that this package scores itself; a harness task may not bear their names."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
    def _placeholders(cls, template: str, info: object) -> str:
        wanted = {"key", "value"} if info.field_name == "fact" else {"key"}  # type: ignore[attr-defined]
        try:
            found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        except ValueError as error:
            raise ValueError(f"{template!r} is no template: {error}") from None
        if found != wanted:
            names = " and ".join(f"{{{name}}}" for name in sorted(wanted))
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


class HarnessTask(_Section):
    """A local multiple-choice task for lm-eval."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="Name of the task in the results.")
    path: Path = Field(
        description="JSONL file with query, choices, gold or with context_options, continuation, gold in each line."
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


class EvaluationConfig(_Section):
    """The matrix variant x task x length, and how it is computed."""

    variants: tuple[Variant, ...] = Field(
        ("rope", "pi", "ntk", "yarn", "drope"), min_length=1, description="Model variants to score."
    )
    lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 4, 8), min_length=1, description="Context factors: evaluated length / training length, rising."
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
    harness: tuple[HarnessTask, ...] = Field(
        (), description="Multiple-choice tasks for lm-eval, at the training length."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the models run; auto: an accelerator.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Number format of weights and activations.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the recall samples and of the harness's example order.")

    @field_validator("lengths")
    @classmethod
    def _rising(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if any(left >= right for left, right in pairwise(lengths)):
            raise ValueError(f"{list(lengths)} must rise, without repeats")
        return lengths

    @model_validator(mode="after")
    def _unique(self) -> "EvaluationConfig":
        for field, names in (("variants", self.variants), ("harness", tuple(task.name for task in self.harness))):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{field} names {', '.join(twice)} twice")
        return self
