"""Where the numbers come from: every stage with what it was made from, what it made, when, and with which versions."""

import hashlib
import json
from dataclasses import dataclass

from pipeline.report.tables import to_csv
from pipeline.runs.manifest import Manifest

_SHORT = 12


@dataclass(frozen=True)
class Input:
    """A stage's input: its name, its digest, and whether that is the digest of the stage that is in the run now."""

    name: str
    digest: str
    short: str
    state: str


@dataclass(frozen=True)
class StageLine:
    """One complete stage; digests are sha256 in hexadecimal, times are UTC."""

    name: str
    started: str
    finished: str
    duration: str
    config: str
    inputs: tuple[Input, ...]
    output: str
    files: int
    size: str


@dataclass(frozen=True)
class Version:
    """A package or fact of the machine; the value names the stages where they differ."""

    name: str
    value: str


def stage_lines(manifests: dict[str, Manifest]) -> list[StageLine]:
    """The complete stages in order."""
    return [
        StageLine(
            name=name,
            started=f"{manifest.started:%Y-%m-%d %H:%M:%S}",
            finished=f"{manifest.finished:%Y-%m-%d %H:%M:%S}",
            duration=duration(manifest.seconds),
            config=config_digest(manifest),
            inputs=tuple(input_line(source, digest, manifests) for source, digest in manifest.inputs.items()),
            output=manifest.digest,
            files=len(manifest.outputs),
            size=size(sum(output.bytes for output in manifest.outputs)),
        )
        for name, manifest in manifests.items()
    ]


def input_line(name: str, digest: str, manifests: dict[str, Manifest]) -> Input:
    """An input of a stage: either another stage's output or a fingerprint of what lies outside the run."""
    if name not in manifests:
        state = "outside the run"
    else:
        state = "this run's" if manifests[name].digest == digest else "not the one in this run"
    return Input(name=name, digest=digest, short=digest[:_SHORT], state=state)


def config_digest(manifest: Manifest) -> str:
    """sha256 over the stage's settings as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(manifest.config, sort_keys=True).encode()).hexdigest()


def versions(manifests: dict[str, Manifest]) -> list[Version]:
    """Every entry of the stages' environments: one value where all stages agree, else each with its stages."""
    names = list(dict.fromkeys(name for manifest in manifests.values() for name in manifest.environment))
    entries = []
    for name in names:
        stages: dict[str, list[str]] = {}
        for stage, manifest in manifests.items():
            stages.setdefault(manifest.environment.get(name, "not recorded"), []).append(stage)
        same = len(stages) == 1
        value = next(iter(stages)) if same else "; ".join(f"{v} ({', '.join(where)})" for v, where in stages.items())
        entries.append(Version(name, value))
    return entries


def versions_csv(entries: list[Version]) -> str:
    """One line an entry."""
    return to_csv(["name", "value"], [[version.name, version.value] for version in entries])


def duration(seconds: float) -> str:
    """'4.2 s', '3 min 12 s', '5 h 07 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes in the unit that fits: '12.3 MB' (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
