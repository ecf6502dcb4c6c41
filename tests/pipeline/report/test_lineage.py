"""Digests, versions and units of the lineage."""

import hashlib

import pytest

from pipeline.report.lineage import duration, size, stage_lines, versions
from pipeline.runs.manifest import Manifest


@pytest.fixture
def manifests(run) -> dict[str, Manifest]:
    run.build()
    loaded = {name: Manifest.load(run.folder / name) for name in run.stages if name != "control"}
    return {name: manifest for name, manifest in loaded.items() if manifest}


def test_every_stage_says_from_what_it_was_made(manifests: dict[str, Manifest]) -> None:
    lines = {line.name: line for line in stage_lines(manifests)}
    assert list(lines) == ["data", "surgery", "recalibration", "export", "evaluation"]
    states = {source.name: (source.digest, source.state) for source in lines["evaluation"].inputs}
    assert states["export"] == (lines["export"].output, "this run's")
    assert states["model"] == ("ab" * 32, "outside the run")
    data = lines["data"]
    assert (data.started, data.finished, data.duration) == ("2026-03-01 09:00:00", "2026-03-01 09:00:20", "20.5 s")
    assert (data.files, data.size) == (1, "4.1 kB")
    content = hashlib.sha256(bytes(4096)).hexdigest()
    assert data.output == hashlib.sha256(f"train.bin {content}\n".encode()).hexdigest()


def test_an_input_that_is_not_the_one_here_is_said(manifests: dict[str, Manifest]) -> None:
    other = manifests["export"].model_copy(update={"inputs": {"recalibration": "00" * 32}})
    line = stage_lines(manifests | {"export": other})[3]
    assert [source.state for source in line.inputs] == ["not the one in this run"]


def test_config_digest_does_not_depend_on_the_order_of_keys(manifests: dict[str, Manifest]) -> None:
    manifest = manifests["recalibration"]
    turned = manifest.model_copy(update={"config": dict(reversed(manifest.config.items()))})
    changed = manifest.model_copy(update={"config": manifest.config | {"lr": 2e-3}})
    digests = [stage_lines({"recalibration": m})[0].config for m in (manifest, turned, changed)]
    assert digests[0] == digests[1] != digests[2]


def test_versions_that_differ_name_their_stages(manifests: dict[str, Manifest]) -> None:
    other = manifests["export"].model_copy(update={"environment": {"python": "3.12.1"}})
    result = {version.name: version.value for version in versions(manifests | {"export": other})}
    assert result["python"] == "3.11.9 (data, surgery, recalibration, evaluation); 3.12.1 (export)"
    assert result["git"] == "0123456789ab (data, surgery, recalibration, evaluation); not recorded (export)"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.24, "4.2 s"), (192, "3 min 12 s"), (3599.6, "1 h 00 min"), (18_442, "5 h 07 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (1000, "1.0 kB"), (12_340_000, "12.3 MB"), (2.5e12, "2.5 TB")]
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text
