"""Scores one unit after the other on models that are loaded once each."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eval.answers.journal import Journal, Record
from eval.answers.scoring import Question, score_answers
from eval.config import LENGTH_DEPENDENT, EvaluationConfig
from eval.inputs import Inputs
from eval.models import Models
from eval.results import Curve, SampleValues, Score
from eval.statistics import mean_and_error
from eval.tasks import longbench
from eval.tasks.data import niah_inputs
from eval.tasks.harness import score_harness
from eval.tasks.lm_tasks import task_over
from eval.tasks.loss import loss_at_length
from eval.tasks.niah.files import load_or_draw
from eval.tasks.niah.scoring import string_match
from eval.tasks.recall import sample_records, score_recall
from eval.tasks.recall_samples import RecallSamples, recall_samples
from eval.tuning.rescale_factors import load_or_search
from eval.units import UNITS, Unit, UnitResult, harness_task
from eval.variants.loading import forget_lengths, load_variant
from eval.variants.rope_scaling import depends_on_factor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """A metric with its value per row, sample or item, and where what is asked stands, if at one place."""

    metric: str
    values: tuple[float, ...]
    depths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scored:
    """What a unit gives: metrics, a loss's curve, and a record per sample where there are any."""

    metrics: tuple[Measured, ...]
    curve: Curve | None = None
    records: Sequence[Record] = ()


class UnitScorer:
    """Holds the model and the recall samples in use; `score` is given the units in the plan's order."""

    def __init__(self, config: EvaluationConfig, models: Models, inputs: Inputs, out_dir: Path) -> None:
        self._config = config
        self._out_dir = out_dir
        self._models = models
        self._inputs = inputs
        self._loaded: tuple[object, PreTrainedModel] | None = None
        self._samples: dict[int, RecallSamples] = {}

    def score(self, unit: Unit, digest: str) -> tuple[UnitResult, Sequence[Record]]:
        """The unit's result, and its records per sample where it has any."""
        model = self._model(unit)
        started = time.perf_counter()
        score = {
            "loss": self._loss,
            "recall": self._recall,
            "niah": self._niah,
            "longbench": self._longbench,
            "harness": self._harness,
        }[unit.family]
        scored = score(unit, model, digest)
        seconds = round(time.perf_counter() - started, 3)
        length = None if unit.family == "harness" else self._length(unit)
        scores, values = [], []
        for measured in scored.metrics:
            one = SampleValues(
                variant=unit.variant,
                task=unit.task,
                metric=measured.metric,
                context_factor=unit.factor,
                values=measured.values,
                depths=measured.depths,
            )
            values.append(one)
            scores.append(_score_of(one, length, seconds))
        result = UnitResult(
            digest=digest, scores=tuple(scores), values=tuple(values), curve=scored.curve, seconds=seconds
        )
        return result, scored.records

    def _length(self, unit: Unit) -> int:
        return unit.factor * self._inputs.context

    def _model(self, unit: Unit) -> "PreTrainedModel":
        """The unit's model; the one before is let go first, so that two never share the memory."""
        if self._loaded is None or self._loaded[0] != unit.model:
            self._loaded = None
            factors = self._factors(unit)
            log.info("loading %s from %s", unit.variant, self._models.folder(unit.variant))
            model = load_variant(
                unit.variant,
                self._models.folder(unit.variant),
                unit.factor if depends_on_factor(unit.variant) else self._config.longest,
                context=self._inputs.context,
                softmax_scale_c=self._config.softmax_scale_c,
                factors=factors,
                dtype=self._config.dtype,
                device=self._inputs.device,
            )
            self._loaded = unit.model, model
        if unit.variant in LENGTH_DEPENDENT:
            forget_lengths(self._loaded[1])
        return self._loaded[1]

    def _factors(self, unit: Unit) -> tuple[float, ...]:
        """LongRoPE2's, given or searched."""
        if unit.variant != "longrope2":
            return ()
        given = self._inputs.rescale.get(unit.factor)
        return given or load_or_search(self._config, self._models, self._inputs, unit.factor, self._out_dir)

    def _window(self, unit: Unit) -> int | None:
        """Tokens that the model is shown at most."""
        return self._inputs.context if unit.variant == "crop" else None

    def _loss(self, unit: Unit, model: "PreTrainedModel", digest: str) -> Scored:
        inputs, length = self._inputs, self._length(unit)
        rows = inputs.rows[unit.factor]
        window = self._window(unit)
        loss = loss_at_length(model, inputs.tokens, length, rows, self._config.batch_tokens, window)
        curve = Curve(
            variant=unit.variant, context_factor=unit.factor, length=length, edges=loss.edges, loss=loss.by_position
        )
        return Scored((Measured("nats_per_token", loss.by_row),), curve)

    def _recall(self, unit: Unit, model: "PreTrainedModel", digest: str) -> Scored:
        samples = self._recall_samples(unit.factor)
        recall = score_recall(model, samples, self._config.batch_tokens, self._window(unit))
        records = sample_records(samples, recall, self._inputs.tokenizer)
        measured = Measured("exact_match", tuple(recall.right.astype(float).tolist()), samples.depths)
        return Scored((measured,), records=records)

    def _recall_samples(self, factor: int) -> RecallSamples:
        """Drawn once per length and used for every variant."""
        inputs, recall = self._inputs, self._config.recall
        assert recall is not None
        if factor not in self._samples:
            length = factor * inputs.context
            self._samples[factor] = recall_samples(
                recall, inputs.encode, inputs.tokens, length, self._config.seed, inputs.prefix
            )
        return self._samples[factor]

    def _niah(self, unit: Unit, model: "PreTrainedModel", digest: str) -> Scored:
        inputs, settings = self._inputs, self._config.niah
        assert settings is not None
        samples = load_or_draw(
            unit.task,
            settings,
            inputs.essays,
            inputs.encode_prompt,
            factor=unit.factor,
            length=self._length(unit),
            seed=self._config.seed,
            digests={name: inputs.digests[name] for name in niah_inputs(unit.task)},
            out_dir=self._out_dir,
        )
        asked = [
            Question(
                sample.tokens,
                partial(string_match, values=sample.answers),
                only_grows=True,
                facts={"depth": sample.depth, "expected": sample.answers},
            )
            for sample in samples
        ]
        records = self._answers(unit, model, digest, asked, settings.new_tokens)
        depths = tuple(sample.depth for sample in samples if sample.depth is not None)  # all have one, or none has
        return Scored((Measured("string_match", tuple(record["value"] for record in records), depths),), None, records)

    def _longbench(self, unit: Unit, model: "PreTrainedModel", digest: str) -> Scored:
        items = self._inputs.items[unit.task]
        task = task_over(f"longbench_{unit.task}", items)
        asked = longbench.questions(task, items, self._inputs.encode_prompt, self._length(unit))
        records = self._answers(unit, model, digest, asked, longbench.new_tokens(task))
        values = tuple(record["value"] for record in records)
        return Scored((Measured(longbench.METRICS[unit.task], values),), None, records)

    def _answers(
        self, unit: Unit, model: "PreTrainedModel", digest: str, asked: list[Question], new_tokens: int
    ) -> list[Record]:
        """Answers to all questions, each kept as it comes."""
        if window := self._window(unit):
            asked = [replace(question, prompt=question.prompt[-max(1, window - new_tokens) :]) for question in asked]
        journal = Journal(self._out_dir / UNITS / f"{unit.name}.answers", digest)
        return score_answers(
            model,
            self._inputs.tokenizer,
            asked,
            journal,
            new_tokens=new_tokens,
            batch_tokens=self._config.batch_tokens,
            reuse=unit.variant not in LENGTH_DEPENDENT,
        )

    def _harness(self, unit: Unit, model: "PreTrainedModel", digest: str) -> Scored:
        metrics = score_harness(
            model,
            self._inputs.tokenizer,
            harness_task(self._config, unit.task),
            self._inputs.items[unit.task],
            context=self._inputs.context,
            batch_tokens=self._config.batch_tokens,
            seed=self._config.seed,
        )
        return Scored(tuple(Measured(score.metric, score.values) for score in metrics))


def _score_of(measured: SampleValues, length: int | None, seconds: float) -> Score:
    """The mean of what was measured."""
    value, stderr = mean_and_error(measured.values)
    return Score(
        variant=measured.variant,
        task=measured.task,
        metric=measured.metric,
        context_factor=measured.context_factor,
        length=length,
        value=value,
        stderr=stderr,
        samples=len(measured.values),
        seconds=seconds,
    )
