"""What the evaluation took: seconds by variant and family of tasks, as its units recorded them."""

from collections.abc import Iterable
from dataclasses import dataclass

from eval.config import Variant
from eval.results import Results
from eval.units import Family, Unit, cells_of
from pipeline.report.lineage import duration
from pipeline.report.tables import to_csv
from pipeline.report.variants import LOOKS, in_order


@dataclass(frozen=True)
class Cost:
    """Of some units: how many, their seconds in total without loading models, and the samples (or rows) scored."""

    units: int
    seconds: float
    samples: int

    @property
    def total(self) -> str:
        return duration(self.seconds)

    @property
    def detail(self) -> str:
        """Seconds per unit and samples per second."""
        units = f"{self.units:,} {'unit' if self.units == 1 else 'units'}"
        rate = f", {self.samples / self.seconds:,.3g} samples/s" if self.seconds else ""
        return f"{units} of {self.seconds / self.units:.3g} s{rate}"


@dataclass(frozen=True)
class CostTable:
    """rows: label and a cost for every family, None where nothing was scored; the last is the sum."""

    families: tuple[Family, ...]
    rows: tuple[tuple[str, tuple[Cost | None, ...]], ...]
    csv: str


def cost_table(results: Results) -> CostTable:
    """A unit that stands for several variants is counted once, for the first of them."""
    costs = unit_costs(results)
    families = tuple(dict.fromkeys(unit.family for unit in costs))
    variants = in_order(tuple({unit.variant for unit in costs}))
    cells = {
        (variant, family): added(
            cost for unit, cost in costs.items() if (unit.variant, unit.family) == (variant, family)
        )
        for variant in variants
        for family in families
    }
    sums = tuple(added(cost for unit, cost in costs.items() if unit.family == family) for family in families)
    rows = [(LOOKS[variant].label, tuple(cells[variant, family] for family in families)) for variant in variants]
    fields = ["variant", "family", "units", "seconds", "seconds_per_unit", "samples", "samples_per_second"]
    lines = [line(variant, family, cost) for (variant, family), cost in cells.items() if cost is not None]
    return CostTable(families, (*rows, ("Together", sums)), to_csv(fields, lines))


def unit_costs(results: Results) -> dict[Unit, Cost]:
    """Of every unit, under the variant that stands for it; a task with two metrics took its time once."""
    scores = {(score.variant, score.task, score.context_factor): score for score in results.scores}
    costs: dict[Unit, Cost] = {}
    for variant, unit in cells_of(results.config, results.config.variants):
        score = scores.get((variant, unit.task, unit.factor))
        if score is not None and unit not in costs:
            costs[unit] = Cost(1, score.seconds, score.samples)
    return costs


def added(costs: Iterable[Cost]) -> Cost | None:
    """The sum; None of none."""
    every = list(costs)
    if not every:
        return None
    return Cost(len(every), sum(cost.seconds for cost in every), sum(cost.samples for cost in every))


def line(variant: Variant, family: Family, cost: Cost) -> list[object]:
    """A line of the CSV file."""
    rate = cost.samples / cost.seconds if cost.seconds else None
    return [variant, family, cost.units, round(cost.seconds, 3), cost.seconds / cost.units, cost.samples, rate]
