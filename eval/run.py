"""The evaluation stage: check, score what is not yet scored, merge."""

import json
import logging
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from eval.answers.journal import Record
from eval.config import EvaluationConfig
from eval.device import device_bytes
from eval.errors import RUN_AGAIN, EvaluationError
from eval.inputs import Inputs, check, read_inputs
from eval.memory import Sizes, evaluation_memory, require_memory
from eval.models import Models, read_config, role_of
from eval.results import RESULTS, TABLE, Results
from eval.scorer import UnitScorer
from eval.tasks.data import niah_inputs
from eval.tasks.niah.files import NIAH, NIAH_ENDINGS
from eval.tasks.recall_samples import load_words
from eval.units import UNITS, Unit, UnitResult, curves_of, keep, kept, plan_units, scores_of, unit_digest, values_of
from foundation.files import explained_writes, write_text

__all__ = ["Models", "check", "check_merge", "run", "run_task"]

log = logging.getLogger(__name__)

_WITH_SAMPLES = ("recall", "niah", "longbench")
"""Families whose units leave a record per sample."""


def run(config: EvaluationConfig, *, models: Models, out_dir: Path) -> Results:
    """Score every variant on every task at every length and write out_dir/results.json, results.csv, samples-*.jsonl.

    Each finished unit is kept in out_dir/units; an evaluation that was killed goes on after the last of them. The
    results appear last and whole.

    Raises: EvaluationError before anything is written for input that cannot be evaluated. DiskError for a full disk.
    """
    inputs = read_inputs(config, models)
    config = inputs.config
    units = plan_units(config)
    _require_memory(units, config, models, inputs, out_dir)
    with explained_writes(out_dir, RUN_AGAIN):
        for stale in (RESULTS, TABLE):
            (out_dir / stale).unlink(missing_ok=True)
    by_unit = _score(units, config, models, inputs, out_dir)
    results = _merge(config, models, inputs, by_unit)
    _remove_others(out_dir, units)
    results.save(out_dir)
    log.info("evaluated %d units in %.1f s: %s", len(units), results.seconds, out_dir / RESULTS)
    return results


def run_task(config: EvaluationConfig, *, models: Models, out_dir: Path, task: int, of: int) -> int:
    """Scores share `task` (0 ... of - 1) of the units, each of which is kept in out_dir/units; how many those are.

    Tasks may run side by side, on any machines that see the folder, and again after they were killed. Units of one
    model stay together as far as the shares allow, so that few tasks load it.

    Raises: EvaluationError as `run`.
    """
    inputs = read_inputs(config, models)
    units = share_of(plan_units(inputs.config), task, of)
    if units:
        _require_memory(units, inputs.config, models, inputs, out_dir)
        _score(units, inputs.config, models, inputs, out_dir)
    return len(units)


def undone_tasks(config: EvaluationConfig, *, models: Models, out_dir: Path, of: int) -> list[int]:
    """Numbers of the tasks, of `of`, that have units left to score.

    Raises: EvaluationError as `run`.
    """
    inputs = read_inputs(config, models)
    units = plan_units(inputs.config)
    left = {unit for unit in units if _kept(unit, inputs.config, inputs, out_dir) is None}
    return [task for task in range(of) if left & set(share_of(units, task, of))]


def check_merge(config: EvaluationConfig, *, models: Models, out_dir: Path) -> None:
    """Raises: EvaluationError if the tasks have left units unscored."""
    inputs = read_inputs(config, models)
    config = inputs.config
    units = plan_units(config)
    missing = [unit for unit in units if _kept(unit, config, inputs, out_dir) is None]
    if missing:
        raise EvaluationError(
            f"{out_dir}: {len(missing)} of {len(units)} units are not scored, the first {missing[0].name}; run their "
            "tasks again, or evaluate without --merge"
        )


def share_of(units: list[Unit], task: int, of: int) -> list[Unit]:
    """Task `task`'s part of the units: parts follow each other and differ in length by one at most."""
    return units[len(units) * task // of : len(units) * (task + 1) // of]


def _require_memory(units: list[Unit], config: EvaluationConfig, models: Models, inputs: Inputs, out_dir: Path) -> None:
    """Raises: EvaluationError if a unit is left to score that this machine cannot hold; merging needs no memory."""
    left = {(unit.family, unit.factor) for unit in units if _kept(unit, config, inputs, out_dir) is None}
    if left:
        needed = evaluation_memory(Sizes.of(read_config(models.source)), config, inputs.context, left)
        require_memory(models.source, needed, config, device_bytes(inputs.device))


def _score(
    units: list[Unit], config: EvaluationConfig, models: Models, inputs: Inputs, out_dir: Path
) -> dict[Unit, UnitResult]:
    """The units' results, kept or computed now."""
    from tqdm import tqdm

    with explained_writes(out_dir, RUN_AGAIN):
        (out_dir / UNITS).mkdir(parents=True, exist_ok=True)
    log.info("evaluating %d units of %d variants on %s", len(units), len(config.variants), inputs.device)
    scorer, results = UnitScorer(config, models, inputs, out_dir), {}
    with tqdm(total=len(units), unit="unit", desc="evaluate", disable=None) as bar:
        for unit in units:
            bar.set_postfix_str(f"{unit.variant} {unit.factor}x {unit.task}")
            results[unit] = _kept_or_scored(unit, config, inputs, scorer, out_dir)
            bar.update()
    return results


def _kept_or_scored(
    unit: Unit, config: EvaluationConfig, inputs: Inputs, scorer: UnitScorer, out_dir: Path
) -> UnitResult:
    """The unit's result, kept or computed now; its samples are written before the file that vouches for them."""
    result = _kept(unit, config, inputs, out_dir)
    if result is None:
        result, records = scorer.score(unit, unit_digest(unit, config, _lineage(unit, inputs)))
        if records:
            write_text(_samples_file(out_dir, unit), _lines(records), RUN_AGAIN)
        keep(out_dir, unit, result)
        (out_dir / UNITS / f"{unit.name}.answers").unlink(missing_ok=True)
    return result


def _kept(unit: Unit, config: EvaluationConfig, inputs: Inputs, out_dir: Path) -> UnitResult | None:
    """The unit's kept result, with its samples where it has some."""
    if unit.family in _WITH_SAMPLES and not _samples_file(out_dir, unit).is_file():
        return None
    return kept(out_dir, unit, unit_digest(unit, config, _lineage(unit, inputs)))


def _lineage(unit: Unit, inputs: Inputs) -> dict[str, str]:
    """Digests of the inputs that the unit reads."""
    roles = {role_of(unit.variant), "source", "tokenizer"}
    if unit.family in ("harness", "longbench"):
        roles.add(f"items.{unit.task}")
    elif unit.family == "niah":
        roles |= niah_inputs(unit.task)
    else:
        roles |= {"validation", "words"} if unit.family == "recall" else {"validation"}
    return {role: inputs.digests[role] for role in sorted(roles)}


def _samples_file(out_dir: Path, unit: Unit) -> Path:
    return out_dir / f"samples-{unit.name}.jsonl"


def _lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _merge(config: EvaluationConfig, models: Models, inputs: Inputs, by_unit: dict[Unit, UnitResult]) -> Results:
    chance = {} if config.recall is None else {"recall": 1 / len(load_words(config.recall)[1])}
    return Results(
        source=str(models.source),
        training_length=inputs.context,
        models={role: inputs.digests[role] for role in ("source", "drope", "control") if role in inputs.digests},
        tokenizer_digest=inputs.digests["tokenizer"],
        config=config,
        left_out=inputs.left_out,
        scores=tuple(scores_of(config, by_unit)),
        values=tuple(values_of(config, by_unit)),
        curves=tuple(curves_of(config, by_unit)),
        chance=chance,
        environment=_environment(config, inputs),
        seconds=round(sum(result.seconds for result in by_unit.values()), 3),
    )


def _environment(config: EvaluationConfig, inputs: Inputs) -> dict[str, str]:
    import torch

    packages = ["torch", "transformers", "megatron-core", *(["lm-eval"] if config.harness or config.longbench else [])]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "hostname": platform.node(),
        "device": str(inputs.device),
        "threads": str(torch.get_num_threads()),
    }


def _remove_others(out_dir: Path, units: list[Unit]) -> None:
    """Remove units and samples of an earlier configuration, so that the folder holds this evaluation and no other."""
    own = {_samples_file(out_dir, unit) for unit in units} | {out_dir / UNITS / f"{unit.name}.json" for unit in units}
    own |= {out_dir / NIAH / f"{unit.task}-{unit.factor}x{end}" for unit in units for end in NIAH_ENDINGS}
    for path in (*out_dir.glob("samples-*.jsonl"), *(out_dir / UNITS).iterdir(), *(out_dir / NIAH).glob("*x.*")):
        if path not in own:
            path.unlink()
