"""Scores one unit after the other on models that are loaded once each."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from eval.checks import Prepared
from eval.config import EvaluationConfig
from eval.harness import score_harness
from eval.length_sweep import loss_at_length
from eval.models import Models
from eval.recall import sample_records, score_recall
from eval.recall_samples import RecallSamples, recall_samples
from eval.rescale import searched
from eval.results import Curve, SampleValues, Score
from eval.units import Unit, UnitResult
from eval.variants import depends_on_factor, load_variant

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

Records = list[dict[str, object]]


class Bench:
    """Holds the model and the recall samples in use; `score` is given the units in the plan's order."""

    def __init__(self, config: EvaluationConfig, models: Models, prepared: Prepared, out_dir: Path) -> None:
        self._config = config
        self._out_dir = out_dir
        self._models = models
        self._prepared = prepared
        self._loaded: tuple[object, PreTrainedModel] | None = None
        self._samples: dict[int, RecallSamples] = {}

    def score(self, unit: Unit, digest: str) -> tuple[UnitResult, Records]:
        """The unit's result, and its records per sample where it has any."""
        model = self._model(unit)
        started = time.perf_counter()
        if unit.harness is not None:
            found, curve, records = self._harness(unit, model)
        elif unit.task == "recall":
            found, curve, records = self._recall(unit, model)
        else:
            found, curve, records = self._loss(unit, model)
        seconds = round(time.perf_counter() - started, 3)
        scores = tuple(
            Score(
                variant=unit.variant,
                task=unit.task,
                metric=metric,
                context_factor=unit.factor,
                length=None if unit.harness else unit.factor * self._prepared.context,
                value=value,
                stderr=stderr,
                samples=len(each),
                seconds=seconds,
            )
            for metric, value, stderr, each in found
        )
        values = tuple(
            SampleValues(
                variant=unit.variant, task=unit.task, metric=metric, context_factor=unit.factor, values=tuple(each)
            )
            for metric, _, _, each in found
        )
        return UnitResult(digest=digest, scores=scores, values=values, curve=curve, seconds=seconds), records

    def _model(self, unit: Unit) -> "PreTrainedModel":
        """The unit's model; the one before is let go first, so that two never share the memory."""
        if self._loaded is None or self._loaded[0] != unit.model:
            self._loaded = None
            factors = self._factors(unit)
            log.info("loading %s from %s", unit.variant, self._models.folder(unit.variant))
            model = load_variant(
                unit.variant,
                self._models.folder(unit.variant),
                unit.factor if depends_on_factor(unit.variant) else self._config.lengths[-1],
                context=self._prepared.context,
                softmax_scale_c=self._config.softmax_scale_c,
                factors=factors,
                dtype=self._config.dtype,
                device=self._prepared.device,
            )
            self._loaded = unit.model, model
        return self._loaded[1]

    def _factors(self, unit: Unit) -> tuple[float, ...]:
        """LongRoPE2's, given or searched."""
        if unit.variant != "longrope2":
            return ()
        given = self._prepared.rescale.get(unit.factor)
        return given or searched(self._config, self._models, self._prepared, unit.factor, self._out_dir)

    def _window(self, unit: Unit) -> int | None:
        """Tokens that the model is shown at most."""
        return self._prepared.context if unit.variant == "crop" else None

    def _loss(self, unit: Unit, model: "PreTrainedModel") -> tuple[list[tuple], Curve, Records]:
        prepared, length = self._prepared, unit.factor * self._prepared.context
        rows = prepared.rows[unit.factor]
        window = self._window(unit)
        found = loss_at_length(model, prepared.tokens, length, rows, self._config.batch_tokens, window)
        curve = Curve(
            variant=unit.variant, context_factor=unit.factor, length=length, edges=found.edges, loss=found.by_position
        )
        return [("nats_per_token", found.value, found.stderr, found.by_row)], curve, []

    def _recall(self, unit: Unit, model: "PreTrainedModel") -> tuple[list[tuple], None, Records]:
        samples = self._recall_samples(unit.factor)
        found = score_recall(model, samples, self._config.batch_tokens, self._window(unit))
        records = sample_records(samples, found, self._prepared.tokenizer)
        return [("exact_match", found.value, found.stderr, found.right.astype(float).tolist())], None, records

    def _recall_samples(self, factor: int) -> RecallSamples:
        """Drawn once per length and used for every variant."""
        prepared, recall = self._prepared, self._config.recall
        assert recall is not None
        if factor not in self._samples:
            length = factor * prepared.context
            self._samples[factor] = recall_samples(
                recall, prepared.encode, prepared.tokens, length, self._config.seed, prepared.prefix
            )
        return self._samples[factor]

    def _harness(self, unit: Unit, model: "PreTrainedModel") -> tuple[list[tuple], None, Records]:
        assert unit.harness is not None
        found = score_harness(
            model,
            self._prepared.tokenizer,
            unit.harness,
            self._prepared.items[unit.task],
            context=self._prepared.context,
            batch_tokens=self._config.batch_tokens,
            seed=self._config.seed,
        )
        return [(score.metric, score.value, score.stderr, score.values) for score in found], None, []
