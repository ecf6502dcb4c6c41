"""The evaluation stage: check, score what is not yet scored, merge."""

import json
import logging
import platform
from importlib.metadata import version
from pathlib import Path

from eval.bench import Bench, Records
from eval.checks import Prepared, check, prepare
from eval.config import EvaluationConfig
from eval.files import disk_errors, write_atomic
from eval.models import Models, role_of
from eval.recall_samples import load_words
from eval.results import RESULTS, TABLE, Results
from eval.units import UNITS, Unit, UnitResult, curves_of, keep, kept, plan_units, scores_of, unit_digest, values_of

__all__ = ["Models", "check", "run"]

log = logging.getLogger(__name__)


def run(config: EvaluationConfig, *, models: Models, out_dir: Path) -> Results:
    """Score every variant on every task at every length and write out_dir/results.json, results.csv, samples-*.jsonl.

    Each finished unit is kept in out_dir/units; an evaluation that was killed goes on after the last of them. The
    results appear last and whole.

    Raises: EvaluationError before anything is written for input that cannot be evaluated; later for a full disk.
    """
    from tqdm import tqdm

    prepared = prepare(config, models)
    with disk_errors(out_dir):
        (out_dir / UNITS).mkdir(parents=True, exist_ok=True)
        for stale in (RESULTS, TABLE):
            (out_dir / stale).unlink(missing_ok=True)
    units = plan_units(config)
    log.info("evaluating %d units of %d variants on %s", len(units), len(config.variants), prepared.device)
    bench = Bench(config, models, prepared, out_dir)
    found: dict[Unit, UnitResult] = {}
    with tqdm(total=len(units), unit="unit", desc="evaluate", disable=None) as bar:
        for unit in units:
            bar.set_postfix_str(f"{unit.variant} {unit.factor}x {unit.task}")
            found[unit] = _kept_or_scored(unit, config, prepared, bench, out_dir)
            bar.update()
    results = _merge(config, models, prepared, found)
    _remove_others(out_dir, units)
    results.save(out_dir)
    log.info("evaluated %d units in %.1f s: %s", len(units), results.seconds, out_dir / RESULTS)
    return results


def _kept_or_scored(
    unit: Unit, config: EvaluationConfig, prepared: Prepared, bench: Bench, out_dir: Path
) -> UnitResult:
    """The unit's result, kept or computed now; its samples are written before the file that vouches for them."""
    digest = unit_digest(unit, config, _lineage(unit, prepared))
    samples = _samples_file(out_dir, unit)
    result = kept(out_dir, unit, digest)
    if result is None or (unit.task == "recall" and not samples.is_file()):
        result, records = bench.score(unit, digest)
        if records:
            write_atomic(samples, _lines(records))
        keep(out_dir, unit, result)
    return result


def _lineage(unit: Unit, prepared: Prepared) -> dict[str, str]:
    """Digests of the inputs that the unit reads."""
    roles = {role_of(unit.variant), "source", "tokenizer"}
    if unit.harness is not None:
        roles.add(f"harness.{unit.task}")
    else:
        roles |= {"validation", "words"} if unit.task == "recall" else {"validation"}
    return {role: prepared.digests[role] for role in sorted(roles)}


def _samples_file(out_dir: Path, unit: Unit) -> Path:
    return out_dir / f"samples-{unit.name}.jsonl"


def _lines(records: Records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _merge(config: EvaluationConfig, models: Models, prepared: Prepared, found: dict[Unit, UnitResult]) -> Results:
    chance = {} if config.recall is None else {"recall": 1 / len(load_words(config.recall)[1])}
    return Results(
        source=str(models.source),
        training_length=prepared.context,
        models={role: prepared.digests[role] for role in ("source", "drope", "control") if role in prepared.digests},
        tokenizer_digest=prepared.digests["tokenizer"],
        config=config,
        scores=tuple(scores_of(config, found)),
        values=tuple(values_of(config, found)),
        curves=tuple(curves_of(config, found)),
        chance=chance,
        environment=_environment(config, prepared),
        seconds=round(sum(result.seconds for result in found.values()), 3),
    )


def _environment(config: EvaluationConfig, prepared: Prepared) -> dict[str, str]:
    import torch

    packages = ["torch", "transformers", "megatron-core", *(["lm-eval"] if config.harness else [])]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "hostname": platform.node(),
        "device": str(prepared.device),
        "threads": str(torch.get_num_threads()),
    }


def _remove_others(out_dir: Path, units: list[Unit]) -> None:
    """Remove units and samples of an earlier configuration, so that the folder holds this evaluation and no other."""
    wanted = {_samples_file(out_dir, unit) for unit in units} | {
        out_dir / UNITS / f"{unit.name}.json" for unit in units
    }
    for path in [*out_dir.glob("samples-*.jsonl"), *(out_dir / UNITS).glob("*.json")]:
        if path not in wanted:
            path.unlink()
