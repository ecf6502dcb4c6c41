"""`drope probe` as a user calls it."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from eval.probes.run import ProbeResults


@pytest.mark.real_processes
def test_a_model_is_probed_before_any_stage_has_run(write_recipe: Callable[..., Path], drope: Any) -> None:
    recipe = write_recipe()
    made = drope("probe", recipe, "--length", 16, "--seed", 3)
    assert made.returncode == 0, made.stderr
    folder = recipe.parent / "runs" / "tiny" / "probes"
    lines = made.stdout.splitlines()
    assert lines[-1] == f"plot: {folder.resolve() / 'probes.svg'}"
    result = ProbeResults.model_validate_json((folder / "probes.json").read_bytes())
    assert [subject.name for subject in result.subjects] == [
        "RoPE, untrained",
        "NoPE, untrained",
        "RoPE",
        "RoPE removed",
    ]
    assert (result.length, result.seed, {layer.sequence for layer in result.layers}) == (16, 3, {"constant"})
    # Proposition 3.2 for every line without positions, 3.3 for those with them; the attention's softmax is in fp32.
    at_rest = [layer for layer in result.layers if layer.epsilon == 0]
    for layer in at_rest:
        without = layer.subject in ("NoPE, untrained", "RoPE removed")
        assert (max(layer.bias.values()) < 1e-7) == without, layer
    assert [line.split("constant")[0].strip() for line in lines[:-1]] == [subject.name for subject in result.subjects]
    rows = list(csv.DictReader((folder / "probes.csv").open()))
    assert len(rows) == len(result.layers)
    words = "".join(ElementTree.parse(folder / "probes.svg").getroot().itertext())
    assert all(name in words for name in ("RoPE, untrained", "RoPE removed", "positional bias", "epsilon"))


def test_a_length_that_makes_no_sense(write_recipe: Callable[..., Path], drope: Any) -> None:
    made = drope("probe", write_recipe(), "--length", 1)
    assert made.returncode == 2 and "1 is not in the range x>=2" in made.stderr
