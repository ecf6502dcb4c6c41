"""The numbers of a run that are worth reading besides its scores."""

from dataclasses import dataclass
from typing import Any

from pipeline.recipe.recipe import Recipe
from pipeline.report.inputs import RunData
from pipeline.report.lineage import duration
from pipeline.report.tables import to_csv


@dataclass(frozen=True)
class KeyNumber:
    """A number (or name) with what it is, and one line of detail."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """A verification: what was compared, the difference, the limit it had to keep."""

    name: str
    difference: str
    limit: str
    detail: str
    ok: bool


def key_numbers(data: RunData) -> list[KeyNumber]:
    """Source, size, cut, training and time; what a stage that is not complete would say is left out."""
    recipe, manifests = data.recipe, data.manifests
    numbers = [source(recipe)]
    if "surgery" in manifests:
        parameters = manifests["surgery"].facts.get("parameters")
        numbers.append(KeyNumber("Parameters", short_count(parameters), count(parameters)))
        numbers.append(KeyNumber("Tensor parallel", str(recipe.surgery.tensor_parallel), "TP ranks"))
    if data.results is not None:
        numbers.append(KeyNumber("Context", f"{data.results.training_length:,}", "tokens in the source's training"))
    for stage, name in (("recalibration", "Recalibration"), ("control", "Control")):
        if stage in manifests:
            numbers.append(training(name, manifests[stage].facts))
    if "recalibration" in manifests:
        settings = recipe.recalibration
        detail = (
            f"batch {settings.batch} rows of {recipe.data.row_length:,}, lr {settings.lr:g} {settings.schedule.kind}"
        )
        computed = in_fp8(manifests["recalibration"].facts) if settings.precision == "fp8" else ""
        numbers.append(KeyNumber("Precision", settings.precision, f"{computed}ZeRO {settings.zero_stage}, {detail}"))
    total = sum(manifest.seconds for manifest in manifests.values())
    each = ", ".join(f"{name} {duration(manifest.seconds)}" for name, manifest in manifests.items())
    numbers.append(KeyNumber("Time", duration(total), each))
    return numbers


def in_fp8(facts: dict[str, Any]) -> str:
    """What a training in FP8 really computed in it: the recipe may leave that to the device."""
    parts = (("attention", "fp8_attention"), ("matrices", "fp8_linear"))
    return "".join(f"{label} in {'FP8' if facts.get(name) else 'bf16'}, " for label, name in parts)


def source(recipe: Recipe) -> KeyNumber:
    """What the run started from."""
    path, seed = recipe.model.path, recipe.model.random_seed
    if seed is not None:
        return KeyNumber("Source", "random weights", f"{path}, drawn from seed {seed}")
    return KeyNumber("Source", path.rstrip("/").rsplit("/", 1)[-1], path)


def training(label: str, facts: dict[str, Any]) -> KeyNumber:
    """Tokens, steps and processes of a training, and what the guard had to do."""
    tokens, steps, processes = (facts.get(name) for name in ("tokens", "steps", "processes"))
    detail = f"{count(tokens)} tokens in {count(steps)} steps on {count(processes)} processes"
    if skipped := facts.get("updates_skipped"):
        detail += f", {skipped:,} {'update' if skipped == 1 else 'updates'} skipped"
    if rollbacks := facts.get("rollbacks"):
        detail += f", went back {'once' if rollbacks == 1 else f'{rollbacks} times'}"
    return KeyNumber(label, f"{short_count(tokens)} tokens", detail)


def checks(data: RunData) -> list[Check]:
    """Does the layout compute what the source computes, and the export what was trained? As the stages recorded it."""
    verifications = []
    if "surgery" in data.manifests and (verification := data.manifests["surgery"].facts.get("verification")):
        tokens = count(verification["tokens"])
        for name, compared in verification["comparisons"].items():
            verifications.append(
                Check(
                    name=f"Layout {name} against the source: largest logit difference",
                    difference=f"{compared['max_difference']:.1e}",
                    limit=f"{compared['limit']:.1e}",
                    detail=f"top-1 agreement {compared['top1_agreement']:.2%} over {tokens} tokens",
                    ok=compared["max_difference"] <= compared["limit"] and compared["top1_agreement"] == 1.0,
                )
            )
    exports = data.manifests["export"].facts if "export" in data.manifests else {}
    for key, name in (("drope", "Exported DroPE"), ("control", "Exported control")):
        if "mean_difference" in (facts := exports.get(key, {})):
            verifications.append(
                Check(
                    name=f"{name} against the trained model: mean loss difference per token",
                    difference=f"{facts['mean_difference']:.1e}",
                    limit=f"{facts['limit']:.1e}",
                    detail=f"loss {facts['loss_exported']:.4f} against {facts['loss_trained']:.4f} over "
                    f"{count(facts['probe_tokens'])} held-out tokens",
                    ok=facts["mean_difference"] <= facts["limit"],
                )
            )
    return verifications


def checks_csv(checks: list[Check]) -> str:
    """One line a check."""
    fields = ["check", "difference", "limit", "passed", "detail"]
    return to_csv(fields, [[one.name, one.difference, one.limit, one.ok, one.detail] for one in checks])


def count(number: int | None) -> str:
    """A whole number with its thousands marked; a dash where it was not recorded."""
    return "–" if number is None else f"{number:,}"


def short_count(number: int | None) -> str:
    """Three significant digits: 655,872 -> '656 k'."""
    if number is None:
        return "–"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
