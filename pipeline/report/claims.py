"""What may be said about DroPE against its rivals: better or worse only beyond the noise of the same samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eval.config import LONGBENCH_TASKS, OF_THE_SOURCE, Variant
from eval.results import Results, Score
from eval.statistics import stratified_bootstrap
from pipeline.report.measures import LONGBENCH, LOWER_IS_BETTER, NEEDLES, Measure, measure
from pipeline.report.variants import LOOKS

Verdict = Literal["better", "worse", "within the noise", "no standard error"]
_STANDARD_ERRORS = 2
_HEADLINE_FACTOR = 4
"""Context factor of the headline where it was evaluated: fixed beforehand, so that no result can choose it."""
COMPARED = ("recall", NEEDLES, LONGBENCH, "loss")
"""What claims are made about, in the order of the page."""
Pairs = Sequence[tuple[Sequence[float], Sequence[float]]]
"""For every task the values of both sides on the same samples."""


@dataclass(frozen=True)
class Claim:
    """DroPE against one rival on one task at one length.

    difference: positive where DroPE is better. stderr: of the difference, None where either score has none. interval:
    its central 95%, where the values behind both scores were compared in pairs.
    """

    ours: Score
    rival: Score
    difference: float
    stderr: float | None
    interval: tuple[float, float] | None = None

    @property
    def verdict(self) -> Verdict:
        if self.stderr is None:
            return "no standard error"
        reach = _STANDARD_ERRORS * self.stderr
        low, high = self.interval or (self.difference - reach, self.difference + reach)
        if low <= 0 <= high:
            return "within the noise"
        return "better" if self.difference > 0 else "worse"

    @property
    def scale(self) -> int:
        """LongBench is told in percent, as in its paper; all others as they are."""
        return 100 if self.ours.task in (LONGBENCH, *LONGBENCH_TASKS) else 1

    @property
    def digits(self) -> int:
        """Decimals that show the difference to its first uncertain digit, at least 2 (1 of percent) and at most 4."""
        least = 1 if self.scale == 100 else 2
        return least if not self.stderr else min(4, max(least, -math.floor(math.log10(self.scale * self.stderr))))

    def number(self, value: float | None) -> str:
        """A value, rounded like the others of this claim."""
        return "–" if value is None else f"{self.scale * value:.{self.digits}f}"

    @property
    def difference_text(self) -> str:
        error = "" if self.stderr is None else f" ± {self.number(self.stderr)}"
        return f"{self.number(abs(self.difference))}{error}"


Claims = dict[str, list[Claim]]
"""By task or mean of tasks."""


def compare(ours: Score, rival: Score, pairs: Pairs = ()) -> Claim:
    """By a bootstrap over samples where the values of both are given, which were scored on the same samples.

    Without them, or where all differences are alike so that nothing can be drawn, the standard errors are added as if
    independent, which mostly overstates the noise.
    """
    sign = -1 if ours.task in LOWER_IS_BETTER else 1
    difference = sign * (ours.value - rival.value)
    if pairs and all(len(our) > 1 for our, _ in pairs):
        paired = stratified_bootstrap([(our, their) if sign > 0 else (their, our) for our, their in pairs])
        if paired.stderr > 0:
            return Claim(ours, rival, difference, paired.stderr, (paired.low, paired.high))
    our_error, rival_error = standard_error(ours), standard_error(rival)
    if our_error is None or rival_error is None:
        return Claim(ours, rival, difference, None)
    return Claim(ours, rival, difference, math.hypot(our_error, rival_error))


def standard_error(score: Score) -> float | None:
    """The score's standard error; for a share of 0 or 1, whose sample deviation is 0, that of (k + 1) / (n + 2).

    Source: Agresti and Coull (1998), "Approximate is better than exact", for shares at the ends.
    """
    if score.task in LOWER_IS_BETTER or score.stderr is None or 0 < score.value < 1:
        return score.stderr
    share = (score.value * score.samples + 1) / (score.samples + 2)
    return max(score.stderr, math.sqrt(share * (1 - share) / score.samples))


def our_variant(results: Results) -> Variant | None:
    """The form of DroPE that claims are made for, by configuration and not by score: scaled where c says so."""
    variants = results.config.variants
    if "drope_scaled" in variants and (results.config.softmax_scale_c > 0 or "drope" not in variants):
        return "drope_scaled"
    return "drope" if "drope" in variants else None


def claims(results: Results, task: str) -> list[Claim]:
    """At every length: DroPE against the best RoPE variant (the source itself at 1x), then against the control.

    task: a task, or NEEDLES or LONGBENCH for the mean of theirs.
    """
    variant_of_ours = our_variant(results)
    scored = measure(results, task)
    cells, claimed = scored.scores, []
    for factor in scored.factors:
        ours = cells.get((variant_of_ours, factor)) if variant_of_ours else None
        if ours is None:
            continue
        rivals = [cells[variant, factor] for variant in OF_THE_SOURCE if (variant, factor) in cells]
        if rivals:
            sign = -1 if task in LOWER_IS_BETTER else 1
            claimed.append(against(scored, ours, max(rivals, key=lambda rival: sign * rival.value)))
        if ("control", factor) in cells:
            claimed.append(against(scored, ours, cells["control", factor]))
    return claimed


def against(scored: Measure, ours: Score, rival: Score) -> Claim:
    """Two variants at one length, in pairs where the values of both are kept."""
    our_parts = scored.parts[ours.variant, ours.context_factor]
    rival_parts = scored.parts[rival.variant, rival.context_factor]
    return compare(ours, rival, list(zip(our_parts, rival_parts, strict=True)) if our_parts and rival_parts else ())


def all_claims(results: Results) -> Claims:
    """Every claim that can be made, by what it is about."""
    return {task: claims(results, task) for task in COMPARED}


def summary(by_task: Claims, chance: dict[str, float]) -> list[str]:
    """At most five sentences: on recall and loss in context (control included), then on these and needles at 4x.

    Where 4x was not evaluated, the longest length stands for it. chance: what guessing would score, by task.
    """
    sentences = [sentence_at(by_task[task], 1, chance.get(task)) for task in ("recall", "loss")]
    for task in ("recall", NEEDLES, "loss"):
        longer = [claim.ours.context_factor for claim in by_task[task] if claim.ours.context_factor > 1]
        headline = _HEADLINE_FACTOR if _HEADLINE_FACTOR in longer else max(longer, default=0)
        sentences.append(sentence_at(by_task[task], headline, chance.get(task)))
    return [sentence for sentence in sentences if sentence]


def sentence_at(claimed: list[Claim], factor: int, chance: float | None) -> str:
    """The sentence on a length, empty where nothing is claimed there; the control is compared in context only."""
    here = [claim for claim in claimed if claim.ours.context_factor == factor]
    if factor != 1:
        here = [claim for claim in here if claim.rival.variant != "control"]
    return sentence(here, chance) if here else ""


_SCORED = {
    "loss": "has a loss of {} nats per token",
    "recall": "recalls {} of the facts",
    NEEDLES: "finds {} of RULER's needles",
}


def sentence(here: list[Claim], chance: float | None = None) -> str:
    """The claims of one task at one length in words: both numbers, the difference and what it is worth."""
    ours = here[0].ours
    factor = ours.context_factor
    place = "its own context" if factor == 1 else f"{factor}x its context"
    tokens = f" ({ours.length:,} tokens)" if ours.length else ""
    value = max(here, key=lambda claim: claim.digits).number(ours.value)
    scored = _SCORED[ours.task].format(value)
    rivals = [f"{rival_name(claim.rival)} {claim.number(claim.rival.value)}: {judgement(claim)}" for claim in here]
    guess = f"; chance is {chance:.2f}" if chance is not None and factor > 1 else ""
    return f"At {place}{tokens} {our_name(ours)} {scored}, {'; '.join(rivals)}{guess}."


def our_name(score: Score) -> str:
    """DroPE in running text."""
    return "DroPE with its softmax scale" if score.variant == "drope_scaled" else "DroPE"


def rival_name(score: Score) -> str:
    """The rival in running text."""
    if score.variant == "control":
        return "the control (RoPE kept, trained on the same rows)"
    if score.context_factor == 1:
        return "the RoPE source"
    if score.variant == "rope":
        return "plain RoPE, the best of the RoPE variants,"
    kind = "variant" if score.variant == "crop" else "scaling"
    return f"the best RoPE {kind} ({LOOKS[score.variant].label})"


def judgement(claim: Claim) -> str:
    """'better by 0.41 ± 0.03', or that nothing better can be said."""
    if claim.verdict == "within the noise":
        return f"no better ({claim.difference_text} apart, within the noise)"
    if claim.verdict == "no standard error":
        return f"{claim.difference_text} apart, without a standard error too little for a claim"
    return f"{claim.verdict} by {claim.difference_text}"
