"""LongRoPE2's factors for an evaluation: given in a file, kept from before, or searched."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.config import EvaluationConfig
from eval.digests import digest_text
from eval.errors import RUN_AGAIN
from eval.inputs import Inputs
from eval.models import Models, head_dim_of, read_config
from eval.tuning.judging import Judge, needles, text
from eval.variants.loading import load_variant
from eval.variants.longrope2 import first_candidates, search
from foundation.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_NEEDLE_SAMPLES = 16


class Rescale(BaseModel):
    """Factors of one context factor, and how they came about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(description="Digest of all that they depend on.")
    factors: tuple[float, ...] = Field(description="One per pair of dimensions, fastest first.")
    critical: int = Field(description="First pair whose factor reaches s.")
    judged_by: str = Field(description="needles or text: what the loss was taken on.")
    loss: float = Field(description="Loss of the best candidate, nats per token.")


def load_or_search(
    config: EvaluationConfig, models: Models, inputs: Inputs, factor: int, out_dir: Path
) -> tuple[float, ...]:
    """The factors for one context factor, searched; kept in out_dir/longrope2-{s}x.json and taken from there.

    Judged by the loss of answers to needle samples of another seed than the scored ones (LongRoPE2's needle-driven
    perplexity) where there are such samples, else by held-out text beyond what is scored.
    """
    from tqdm import tqdm

    path, digest = out_dir / f"longrope2-{factor}x.json", _digest(config, inputs, factor)
    if kept := _kept(path, digest):
        return kept.factors
    shape, settings = read_config(models.source), config.longrope2
    theta, width = shape.rope_parameters["rope_theta"], head_dim_of(shape)
    first = first_candidates(theta, width, inputs.context, factor)
    model = load_variant(
        "longrope2",
        models.source,
        factor,
        context=inputs.context,
        factors=first[0].factors,
        dtype=config.dtype,
        device=inputs.device,
    )
    judge = _judge(config, inputs, factor)
    total = len(first) + settings.population * settings.generations
    with tqdm(total=total, desc=f"longrope2 {factor}x", unit="candidate", disable=None) as bar:

        def show(best: float) -> None:
            bar.update()
            bar.set_postfix_str(f"loss {best:.4f}")

        best = search(
            lambda factors: judge.loss(with_factors(model, factors, theta)),
            first,
            factor,
            population=settings.population,
            generations=settings.generations,
            seed=config.seed,
            on_judged=show,
        )
    rescale = Rescale(digest=digest, factors=best.factors, critical=best.critical, judged_by=judge.kind, loss=best.loss)
    write_text(path, rescale.model_dump_json(indent=1) + "\n", RUN_AGAIN)
    log.info("longrope2 %dx: critical pair %d, loss %.4f on %s", factor, best.critical, best.loss, judge.kind)
    return best.factors


def with_factors(model: "PreTrainedModel", factors: Sequence[float], theta: float) -> "PreTrainedModel":
    """The same loaded longrope model, from now on with these factors beyond the training length."""
    import torch

    rotary = model.model.rotary_emb
    pairs = torch.arange(len(factors), dtype=torch.float32) / len(factors)
    rotary.long_inv_freq = (1.0 / (torch.tensor(factors) * theta**pairs)).to(rotary.inv_freq.device)
    return model


def _judge(config: EvaluationConfig, inputs: Inputs, factor: int) -> Judge:
    """What a candidate is judged by."""
    length = factor * inputs.context
    if config.recall is not None:
        return needles(config.recall, config, inputs, length, _NEEDLE_SAMPLES)
    return text(inputs.unscored, length, max(1, config.longrope2.tokens // length), config.batch_tokens)


def _digest(config: EvaluationConfig, inputs: Inputs, factor: int) -> str:
    facts = {
        "factor": factor,
        "longrope2": config.longrope2.model_dump(mode="json"),
        "recall": config.recall.model_dump(mode="json") if config.recall is not None else None,
        "numbers": config.model_dump(mode="json", include={"dtype", "seed", "device", "batch_tokens"}),
        "inputs": {role: inputs.digests.get(role) for role in ("source", "tokenizer", "validation", "words")},
        "scored": len(inputs.tokens),
    }
    return digest_text(json.dumps(facts, sort_keys=True))


def _kept(path: Path, digest: str) -> Rescale | None:
    if not path.is_file():
        return None
    try:
        rescale = Rescale.model_validate_json(path.read_bytes())
    except ValidationError:
        log.warning("%s is unreadable; searching again", path)
        return None
    return rescale if rescale.digest == digest else None
