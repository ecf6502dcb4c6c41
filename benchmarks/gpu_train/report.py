"""The measurements as tables in Markdown."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from model_surgery.shape import ModelShape
from pipeline.recalibration.mfu import mfu

LIBRARIES = ("torch", "deepspeed", "megatron-core", "transformer-engine", "transformers", "accelerate")


def facts_of(run: Mapping[str, Any], peak: float | None) -> dict[str, Any]:
    """What a run's seconds come to: tokens/s, MFU (None on a device whose peak is not known), GiB."""
    case = run["case"]
    seconds = median(run["seconds"])
    tokens = case["length"] * case["micro_batch"] * case["accumulate"]
    shape = ModelShape.model_validate(case["shape"])
    share = None if peak is None else mfu(shape, tokens, case["length"], seconds, 1, peak)
    return {"tokens_per_second": tokens / seconds, "mfu": share, "gib": run["memory_bytes"] / 2**30}


def page(runs: Sequence[Mapping[str, Any]], device: str, peak: float | None) -> str:
    """A row for every run, its ratio to the published way at the same model, and the share of every kind of kernel."""
    published = {run["case"]["model"]: run for run in runs if run["case"]["way"] == "published" and "seconds" in run}
    lines = ["| model | way | layers | micro batch | tokens/s | MFU | GiB | to published |", "|---" * 8 + "|"]
    lines += [_row(run, published.get(run["case"]["model"]), peak) for run in runs]
    lines += ["", "| model | way | share of a step by kind of kernel |", "|---|---|---|"]
    for run in runs:
        if parts := run.get("breakdown"):
            total = sum(parts.values())
            shares = ", ".join(f"{kind} {seconds / total:.0%}" for kind, seconds in parts.items())
            lines.append(f"| {run['case']['model']} | {run['case']['way']} | {shares} |")
    formula = "MFU = tokens x (6 x weights + 6 x layers x heads x head_dim x length) / (seconds x peak)"
    said = f"{peak / 1e12:.0f} TFLOP/s, dense bf16, also for FP8" if peak else "not known for this device"
    lines += ["", f"- {device}; {formula}; peak {said}", f"- {', '.join(_version(name) for name in LIBRARIES)}"]
    return "\n".join(lines)


def _row(run: Mapping[str, Any], published: Mapping[str, Any] | None, peak: float | None) -> str:
    case = run["case"]
    size = f"{case['shape']['layers']} | {case['micro_batch']} x {case['accumulate']}"
    head = f"| {case['model']} | {case['way']} | {size} |"
    if "seconds" not in run:
        return f"{head} {run['failed']} | | | |"
    facts = facts_of(run, peak)
    speed = facts["tokens_per_second"]
    ratio = f"{speed / facts_of(published, peak)['tokens_per_second']:.2f}x" if published else ""
    share = "" if facts["mfu"] is None else f"{facts['mfu']:.1%}"
    return f"{head} {speed:,.0f} | {share} | {facts['gib']:.1f} | {ratio} |"


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"
