"""The softmax scale of a model without positions, tuned at every length beyond the trained one, and c fitted to it."""

import csv
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from eval.config import EvaluationConfig
from eval.errors import EvaluationError
from eval.held_out import count_tokens, open_prefixes, read_tokens
from eval.inputs import Inputs, read_inputs
from eval.models import Models
from eval.statistics import mean_and_error
from eval.tuning.judging import Judge, JudgedBy, needles, text
from eval.tuning.scale_fit import (
    EVALUATIONS,
    at_an_end,
    bootstrap_betas,
    fitted_c,
    knots,
    minimised,
    residual_error,
)
from eval.variants.loading import load_variant
from foundation.files import write_text
from model_surgery.softmax_scale import softmax_scale

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_DRAWS = 1000


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Record):
    """A beta that was tried, and its loss."""

    beta: float
    loss: float = Field(description="Nats per token.")


class TunedLength(_Record):
    """The best beta at one length."""

    factor: int = Field(description="s: length over training length.")
    length: int = Field(description="Tokens.")
    rows: int = Field(description="Rows of text or needle samples that the losses are means over.")
    beta: float
    beta_error: float | None = Field(description="Its standard error over draws of rows; none with a single row.")
    points: tuple[Point, ...] = Field(description="All that was tried, by rising beta.")
    loss_plain: float = Field(description="At beta = 1.")
    loss_tuned: float = Field(description="At the best beta.")
    fitted_beta: float = Field(description="1 + c ln s.")
    loss_fitted: float = Field(description="At 1 + c ln s.")
    gain: float = Field(description="loss_plain - loss_fitted, on the rows that the scale was tuned on.")
    gain_error: float | None = Field(description="Its standard error over rows; none with a single row.")


class ScaleResults(_Record):
    """The tuned scales of a model and the line through them."""

    schema_version: Literal[1] = 1
    model: str = Field(description="Folder of the model.")
    model_digest: str
    training_length: int
    judged_by: JudgedBy
    seed: int = Field(description="Seed of the needle samples, where those judge.")
    c: float = Field(description="In beta = 1 + c ln s, by least squares.")
    c_error: float | None = Field(
        description="Its standard error over draws of rows at every length; none where a length has a single row."
    )
    c_residual_error: float | None = Field(
        description="Its standard error from the distances of the betas to the line; none for a single length."
    )
    lengths: tuple[TunedLength, ...]

    def beta(self, factor: float) -> float:
        """1 + c ln s.

        Raises: EvaluationError where that is no scale, zero or less.
        """
        if (beta := softmax_scale(factor, self.c)) > 0:
            return beta
        raise EvaluationError(f"factor = {factor:g}: 1 + c ln s = {beta:.3g} with c = {self.c:.3g}; take a smaller one")

    def save(self, folder: Path) -> None:
        """Writes scale.csv (one line per length and beta) and scale.json."""
        write_text(folder / "scale.csv", self.table())
        write_text(folder / "scale.json", self.model_dump_json(indent=1) + "\n")

    def table(self) -> str:
        """All losses as CSV."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["context_factor", "length", "rows", "beta", "loss", "best"])
        for one in self.lengths:
            for point in one.points:
                best = int(point.beta == one.beta)
                writer.writerow([one.factor, one.length, one.rows, point.beta, point.loss, best])
        return out.getvalue()


@dataclass(frozen=True)
class Tuning:
    """What a scale is tuned with: nothing of it is scored by the evaluation.

    tokens: [n] held-out text beyond the scored, for rows to judge or to train by; check: [m] that follows it, for rows
    that neither beta nor a head's scale has seen. row_tokens: of such rows in all. samples: needles.
    """

    config: EvaluationConfig
    inputs: Inputs
    tokens: np.ndarray
    check: np.ndarray
    row_tokens: int
    samples: int

    def judge(self, length: int) -> Judge:
        """Needle answers where the recipe has recall, else text."""
        if self.config.recall is not None:
            return needles(self.config.recall, self.config, self.inputs, length, self.samples)
        return self.text(length)

    def text(self, length: int) -> Judge:
        """Rows of the text to tune on, `row_tokens` tokens in all and at least one."""
        return text(self.tokens, length, self._rows(self.tokens, length), self.config.batch_tokens)

    def unseen(self, length: int) -> Judge | None:
        """Rows of the text to check by; None where no row of that length is left."""
        rows = self._rows(self.check, length)
        return text(self.check, length, rows, self.config.batch_tokens) if rows else None

    def _rows(self, tokens: np.ndarray, length: int) -> int:
        return min(max(1, self.row_tokens // length), max(0, (len(tokens) - 1) // length))


def prepare_tuning(
    config: EvaluationConfig, models: Models, *, tokens: int, samples: int, head_length: int | None = None
) -> Tuning:
    """Reads what the scale is tuned with.

    tokens: of held-out text, at each length at least one row. samples: of needles, where the config has recall.
    head_length: tokens of the rows that scales per head are trained on, if they are; they take text in any case.

    Raises: EvaluationError without a length above 1x, with too little text, for a model with RoPE, and as
        `read_inputs`.
    """
    if config.context_factors[-1] <= 1:
        raise EvaluationError(
            "evaluation.context_factors = [1]: a softmax scale is for lengths above 1x; add 2, 4, ..."
        )
    config = config.model_copy(update={"variants": ("drope",), "harness": (), "niah": None, "longbench": None})
    inputs = read_inputs(config, models)
    needed = [head_length] if head_length else []
    if config.recall is None:
        needed.append(config.context_factors[-1] * inputs.context)
    tune, check = _unscored(models, inputs, max(needed) if needed else 0, tokens, share=head_length is not None)
    return Tuning(config, inputs, tune, check, tokens, samples)


def _unscored(
    models: Models, inputs: Inputs, longest: int, asked: int, *, share: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out tokens after the scored ones: for at least one row of `longest` tokens; and others to check by.

    share: as many for the check; where there are too few for both, half are, if the other half holds a row.
    """
    if not longest:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    datasets, scored = open_prefixes(models.validation), len(inputs.tokens)
    available = count_tokens(datasets) - scored
    if available < longest + 1:
        raise EvaluationError(
            f"validation: {available + scored} tokens, of which {scored} are scored by the evaluation; a scale is "
            f"tuned on others, at least {longest + 1}; prepare more validation text, or lower evaluation.loss.tokens"
        )
    size, parts = max(asked, longest) + 1, 2 if share else 1
    tokens = read_tokens(datasets, scored + parts * size)[scored:]
    if len(tokens) < parts * size:
        log.warning("validation: %d tokens are not scored, %d are asked for; all are taken", len(tokens), parts * size)
    if share:
        size = max(longest + 1, min(size, len(tokens) // 2))
    return tokens[:size], tokens[size:]


class QueryScale:
    """Gives a loaded model any softmax scale: every attention's own factor, as loaded, times beta.

    softmax(beta q.k / sqrt d) as `eval.variants.loading.scale_queries` has it, but from what was there at first each
    time and with no weight touched, so that scales do not pile up and beta = 1 is the model itself to the last bit.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self._first = [layer.self_attn.scaling for layer in model.model.layers]

    def __call__(self, beta: float) -> "PreTrainedModel":
        """The same model, from now on with this scale."""
        for layer, first in zip(self._model.model.layers, self._first, strict=True):
            layer.self_attn.scaling = first * beta
        return self._model


def load_model(tuning: Tuning, models: Models, factor: float) -> "PreTrainedModel":
    """The exported model for lengths up to `factor` times the training length."""
    return load_variant(
        "drope",
        models.folder("drope"),
        int(np.ceil(factor)),
        context=tuning.inputs.context,
        dtype=tuning.config.dtype,
        device=tuning.inputs.device,
    )


class _Curve:
    """Losses of one length at every beta that was tried."""

    def __init__(self, factor: int, judge: Judge, scaled: QueryScale, on_loss: Callable[[], object]) -> None:
        self.factor, self.judge = factor, judge
        self._scaled, self._on_loss = scaled, on_loss
        self.by_row: dict[float, np.ndarray] = {}

    def loss(self, beta: float) -> float:
        """Mean loss at a beta; the model is asked once for each."""
        if beta not in self.by_row:
            self.by_row[beta] = self.judge.by_row(self._scaled(beta))
            self._on_loss()
        return float(np.average(self.by_row[beta], weights=self.judge.counts))

    def draws(self, best: float, seed: int) -> np.ndarray | None:
        """Best betas of redrawn rows, [draws]; None with a single row."""
        at = knots(best)
        losses = np.stack([self.by_row[beta] for beta in at])
        return bootstrap_betas(at, losses, self.judge.counts, _DRAWS, [seed, self.factor])

    def record(self, context: int, best: float, fitted: float, drawn: np.ndarray | None) -> TunedLength:
        """All of it."""
        return TunedLength(
            factor=self.factor,
            length=self.factor * context,
            rows=len(self.judge.rows),
            beta=best,
            beta_error=None if drawn is None else float(drawn.std(ddof=1)),
            points=tuple(Point(beta=beta, loss=self.loss(beta)) for beta in sorted(self.by_row)),
            loss_plain=self.loss(1.0),
            loss_tuned=self.loss(best),
            fitted_beta=fitted,
            loss_fitted=self.loss(fitted),
            gain=self.loss(1.0) - self.loss(fitted),
            gain_error=mean_and_error(self.by_row[1.0] - self.by_row[fitted])[1],
        )


def tune(tuning: Tuning, models: Models, model: "PreTrainedModel") -> ScaleResults:
    """The beta of least loss at every length above 1x, and c of beta = 1 + c ln s through them (arXiv:2512.12167).

    c has two standard errors: of refits to the betas of redrawn rows, drawn for each length by itself, and from the
    residuals of the fit, which also tell how far the betas are from such a line. The model is left with no scale.
    """
    from tqdm import tqdm

    scaled, context = QueryScale(model), tuning.inputs.context
    factors = [factor for factor in tuning.config.context_factors if factor > 1]
    with tqdm(total=len(factors) * (EVALUATIONS + 1), desc="tune-scale", unit="loss", disable=None) as bar:
        curves = [_Curve(factor, tuning.judge(factor * context), scaled, bar.update) for factor in factors]
        betas = [minimised(curve.loss) for curve in curves]
        c = float(fitted_c(factors, np.array(betas)))
        draws = [curve.draws(beta, tuning.config.seed) for curve, beta in zip(curves, betas, strict=True)]
        lengths = tuple(
            curve.record(context, beta, softmax_scale(curve.factor, c), drawn)
            for curve, beta, drawn in zip(curves, betas, draws, strict=True)
        )
    scaled(1.0)
    for one in lengths:
        if at_an_end(one.beta):
            log.warning("%dx: the least loss is at the end of what is searched, beta = %.3f", one.factor, one.beta)
    complete = [drawn for drawn in draws if drawn is not None]
    redrawn = fitted_c(factors, np.stack(complete, axis=-1)) if len(complete) == len(draws) else None
    return ScaleResults(
        model=str(models.folder("drope")),
        model_digest=tuning.inputs.digests["drope"],
        training_length=context,
        judged_by=curves[0].judge.kind,
        seed=tuning.config.seed + 1,
        c=c,
        c_error=None if redrawn is None else float(redrawn.std(ddof=1)),
        c_residual_error=residual_error(factors, betas),
        lengths=lengths,
    )
