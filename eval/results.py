"""The scores of an evaluation and the files that they are kept in."""

import csv
import io
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from eval.config import EvaluationConfig, Variant
from eval.errors import RUN_AGAIN, EvaluationError
from foundation.files import write_text

SCHEMA_VERSION: Literal[3] = 3
RESULTS = "results.json"
TABLE = "results.csv"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Record):
    """One number: a variant on a task at a length."""

    variant: Variant = Field(description="Model variant.")
    task: str = Field(description="loss, recall, or the name of a needle, LongBench or harness task.")
    metric: str = Field(
        description="nats_per_token, exact_match, string_match, qa_f1, rouge_l, code_sim, acc or acc_norm."
    )
    context_factor: int = Field(description="Evaluated length / training length.")
    length: int | None = Field(description="Tokens of a row, or of a sample at most; none for a harness task.")
    value: FiniteFloat = Field(description="The score.")
    stderr: FiniteFloat | None = Field(description="Standard error over rows, samples or items; none for a single one.")
    samples: int = Field(ge=1, description="Rows, samples or items scored.")
    seconds: float = Field(description="Time that the scoring took, without loading the model.")


class SampleValues(_Record):
    """What a score is the mean of: one value per row, sample or item, in the same order for every variant."""

    variant: Variant = Field(description="Model variant.")
    task: str = Field(description="As in the score.")
    metric: str = Field(description="As in the score.")
    context_factor: int = Field(description="As in the score.")
    values: tuple[FiniteFloat, ...] = Field(description="Nats per token of a row; 0 to 1 of a sample or item.")
    depths: tuple[float, ...] = Field(
        (), description="Where what is asked stands, 0 to 1 of the length; none where it is not at one place."
    )


class Curve(_Record):
    """Loss along the position, at the longest length."""

    variant: Variant = Field(description="Model variant.")
    context_factor: int = Field(description="Evaluated length / training length.")
    length: int = Field(description="Tokens of a row.")
    edges: tuple[int, ...] = Field(description="Edges of the position buckets in tokens, one more than buckets.")
    loss: tuple[FiniteFloat, ...] = Field(description="Mean next-token loss in each bucket, in nats per token.")


class Results(_Record):
    """Everything that an evaluation found, with what it was found on."""

    schema_version: Literal[3] = Field(SCHEMA_VERSION, description="Version of this form.")
    source: str = Field(description="Folder of the source model.")
    training_length: int = Field(description="The source's context in tokens: context factor 1.")
    models: dict[str, str] = Field(description="Digest of config and weights of each model folder, by its role.")
    tokenizer_digest: str = Field(description="SHA-256 over the tokenizer's files.")
    config: EvaluationConfig = Field(description="What was asked for, without what was left out.")
    left_out: dict[str, str] = Field({}, description="Tasks that were asked for and left out, with what each lacked.")
    scores: tuple[Score, ...] = Field(min_length=1, description="All scores: by task, then variant, then length.")
    values: tuple[SampleValues, ...] = Field(description="The values behind the scores, for paired comparisons.")
    curves: tuple[Curve, ...] = Field(description="Loss along the position at the longest length, by variant.")
    chance: dict[str, float] = Field(description="What guessing would score, by task.")
    environment: dict[str, str] = Field(description="Versions and devices that computed this.")
    seconds: float = Field(description="Time of all units, also of those kept from an interrupted run.")

    @model_validator(mode="after")
    def _whole(self) -> "Results":
        """Every list of values is as long as its score says."""
        samples = {(one.variant, one.task, one.metric, one.context_factor): one.samples for one in self.scores}
        for one in self.values:
            if len(one.values) != samples.get((one.variant, one.task, one.metric, one.context_factor)):
                place = f"{one.task} of {one.variant} at {one.context_factor}x"
                raise ValueError(f"{place}: {len(one.values)} values of {one.metric} are not those of a score")
        return self

    def save(self, folder: Path) -> None:
        """Write results.csv, then results.json, each atomically: where results.json is, the results are whole."""
        write_text(folder / TABLE, self.table(), RUN_AGAIN)
        write_text(folder / RESULTS, self.model_dump_json(indent=1) + "\n", RUN_AGAIN)

    def table(self) -> str:
        """The scores as CSV, one line each, with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(Score.model_fields), lineterminator="\n")
        writer.writeheader()
        writer.writerows(score.model_dump() for score in self.scores)
        return text.getvalue()

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Raises: EvaluationError where there are no results, or of another form, or without scores, or with a NaN."""
        path = folder / RESULTS
        if not path.is_file():
            raise EvaluationError(f"{path} does not exist; run the evaluation first")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = "".join(f"{part}." for part in first["loc"])[:-1] or "results"
            problem = first["msg"].removeprefix("Value error, ")
            raise EvaluationError(f"{path}: unknown format: {place}: {problem}; evaluate again") from None
