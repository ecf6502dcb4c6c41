"""The matrix variant x task x length as independent units, each kept in a file of its own once it is computed."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.config import EvaluationConfig, HarnessTask, Variant
from eval.digests import digest_text
from eval.errors import RUN_AGAIN
from eval.results import SCHEMA_VERSION, Curve, SampleValues, Score
from eval.variants.rope_scaling import canonical, depends_on_factor
from foundation.files import write_text

log = logging.getLogger(__name__)

UNITS = "units"


Family = Literal["loss", "recall", "niah", "longbench", "harness"]


@dataclass(frozen=True)
class Unit:
    """One task on one computed variant at one context factor."""

    family: Family
    task: str
    variant: Variant
    factor: int

    @property
    def name(self) -> str:
        """Name of the unit's files."""
        return f"{self.task}-{self.variant}-{self.factor}x"

    @property
    def model(self) -> tuple[Variant, int | None]:
        """What identifies the loaded model: units with the same one share it. What is cropped is the source itself."""
        if self.variant == "crop":
            return "rope", None
        return self.variant, self.factor if depends_on_factor(self.variant) else None


class UnitResult(BaseModel):
    """A computed unit, as kept in units/NAME.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(description="Digest of all that the scores depend on.")
    scores: tuple[Score, ...] = Field(description="The unit's scores.")
    values: tuple[SampleValues, ...] = Field(description="The values that the scores are the means of.")
    curve: Curve | None = Field(description="Loss along the position, for a loss unit.")
    seconds: float = Field(description="Time that the scoring took.")


def plan_units(config: EvaluationConfig) -> list[Unit]:
    """The units to compute, without repeats, those of one model next to each other.

    Where a scaling is the identity (see `canonical`) the plain variant's unit stands for it.
    """
    units = dict.fromkeys(unit for variant in config.variants for _, unit in cells_of(config, (variant,)))
    first_seen = {model: place for place, model in reversed(list(enumerate(unit.model for unit in units)))}
    return sorted(units, key=lambda unit: first_seen[unit.model])


def rows_of(config: EvaluationConfig) -> Iterator[tuple[Family, str, tuple[int, ...]]]:
    """Family, name and context factors of every task."""
    yield "loss", "loss", config.context_factors
    if config.recall is not None:
        yield "recall", "recall", config.context_factors
    for needle_task in config.niah.tasks if config.niah else ():
        yield "niah", needle_task, config.niah_factors
    for longbench_task in config.longbench.tasks if config.longbench else ():
        yield "longbench", longbench_task, (config.longbench_factor,)
    for task in config.harness:
        yield "harness", task.name, (1,)


def cells_of(config: EvaluationConfig, variants: tuple[Variant, ...]) -> Iterator[tuple[Variant, Unit]]:
    """Every cell of the matrix by task, variant, length, with the unit that stands for it."""
    for family, name, factors in rows_of(config):
        for variant in variants:
            for factor in factors:
                yield variant, Unit(family, name, canonical(variant, factor, config.softmax_scale_c), factor)


def unit_digest(unit: Unit, config: EvaluationConfig, lineage: dict[str, str]) -> str:
    """Digest of all that the unit's scores depend on; a changed configuration keeps the units that it does not touch.

    lineage: digests of the inputs (model, tokenizer, validation, data files) that this unit reads.
    """
    facts = {
        "schema_version": SCHEMA_VERSION,
        "unit": unit.name,
        "task": task_settings(unit, config),
        "lineage": lineage,
        "numbers": config.model_dump(mode="json", include={"dtype", "seed", "device", "batch_tokens"}),
        "softmax_scale_c": config.softmax_scale_c if unit.variant == "drope_scaled" else None,
        "longrope2": config.longrope2.model_dump(mode="json") if unit.variant == "longrope2" else None,
    }
    return digest_text(json.dumps(facts, sort_keys=True))


def task_settings(unit: Unit, config: EvaluationConfig) -> dict[str, Any]:
    """What the recipe says of the unit's task, without what names its data (see lineage) or only chooses units."""
    if unit.family == "harness":
        return harness_task(config, unit.task).model_dump(mode="json", exclude={"path"})
    section = getattr(config, unit.family)
    return section.model_dump(mode="json", exclude={"tasks", "context_factors", "essays", "folder", "factor"})


def harness_task(config: EvaluationConfig, name: str) -> HarnessTask:
    """The harness task of that name."""
    return next(task for task in config.harness if task.name == name)


def keep(out_dir: Path, unit: Unit, result: UnitResult) -> None:
    """Writes a computed unit, atomically.

    Raises: DiskError for a full disk.
    """
    write_text(out_dir / UNITS / f"{unit.name}.json", result.model_dump_json(indent=1) + "\n", RUN_AGAIN)


def kept(out_dir: Path, unit: Unit, digest: str) -> UnitResult | None:
    """The kept unit, where there is one that was computed from the same things."""
    path = out_dir / UNITS / f"{unit.name}.json"
    if not path.is_file():
        return None
    try:
        result = UnitResult.model_validate_json(path.read_bytes())
    except ValidationError:
        log.warning("%s is unreadable; computing it again", path)
        return None
    if result.digest != digest:
        log.info("%s was computed from another configuration or other inputs; computing it again", path)
        return None
    return result


def scores_of(config: EvaluationConfig, results: dict[Unit, UnitResult]) -> list[Score]:
    """The scores of every variant asked for, by task, variant, length; copied where one unit stands for several."""
    return [
        score.model_copy(update={"variant": variant})
        for variant, unit in cells_of(config, config.variants)
        for score in results[unit].scores
    ]


def values_of(config: EvaluationConfig, results: dict[Unit, UnitResult]) -> list[SampleValues]:
    """The values behind `scores_of`, in its order."""
    return [
        values.model_copy(update={"variant": variant})
        for variant, unit in cells_of(config, config.variants)
        for values in results[unit].values
    ]


def curves_of(config: EvaluationConfig, results: dict[Unit, UnitResult]) -> list[Curve]:
    """The loss along the position of every variant asked for, at the longest length of the loss."""
    return [
        curve.model_copy(update={"variant": variant})
        for variant, unit in cells_of(config, config.variants)
        if unit.family == "loss"
        and unit.factor == config.context_factors[-1]
        and (curve := results[unit].curve) is not None
    ]
