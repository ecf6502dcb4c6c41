"""Layers of Transformer Engine, by its stand-in for the CPU (tests/te_stand_in), and one that does not load."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_surgery.megatron.names import layout_name
from model_surgery.megatron.te import availability

ROOT = Path(__file__).parents[2]


def python(*words: str, path: Path | None = None) -> str:
    """What another process prints: in this one Megatron-core is imported already."""
    before = [str(path)] if path else []
    code = f"import sys; sys.path[:0] = {before!r}; "
    command = [sys.executable, *((words[0], code + words[1]) if words[0] == "-c" else words)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    return json.loads(python("-m", "tests.model_surgery.te_worker"))


def test_a_norm_within_a_matrix_has_a_name_in_the_layout() -> None:
    for norm, name in (
        ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
        ("mlp.linear_fc1.weight",) * 2,
    ):
        assert layout_name(f"decoder.layers.7.{norm}") == f"decoder.layers.7.{name}"


@pytest.mark.slow
def test_parameters_and_states_have_the_names_of_the_layout(outcome: dict[str, Any]) -> None:
    assert set(outcome["names"].values()) == {True}


@pytest.mark.slow
def test_states_go_both_ways(outcome: dict[str, Any]) -> None:
    assert outcome["states_go_both_ways"] == {
        "transformer_engine to torch": True,
        "torch takes a part": False,
        "torch to transformer_engine": True,
        "transformer_engine takes a part": False,
    }


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_the_other_layers(outcome: dict[str, Any]) -> None:
    """In fp32: with RoPE, recomputed, attending within documents, and with heads that are filled up with zeros."""
    assert len(outcome["equal_to_torch"]) == 8
    assert all(value <= 1e-6 for values in outcome["equal_to_torch"].values() for value in values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "attention", "matrices"),
    [
        ("attention", "1111", "0000"),
        ("attention of middle layers", "0110", "0000"),
        ("linear", "0000", "1111"),
        ("both, not the first layer", "0111", "0111"),
    ],
)
def test_fp8_is_where_it_is_wanted_and_scales_move_once_a_pass(
    settings: str, attention: str, matrices: str, outcome: dict[str, Any]
) -> None:
    seen = outcome["regions"][settings]
    assert seen["training"]["attention"] == [mark == "1" for mark in attention]
    assert seen["training"]["matrices"] == [mark == "1" for mark in matrices]
    assert seen["training"]["updates"] == [1, 1]  # forward and backward
    assert seen["training"]["width"] == (16 if settings == "linear" else 128)
    for when in ("warm-up", "evaluation"):
        assert not any(seen[when]["attention"] + seen[when]["matrices"])
        assert seen[when]["updates"] == [0, 0]


@pytest.mark.slow
def test_fp8_is_near_fp32_and_causal(outcome: dict[str, Any]) -> None:
    numbers = outcome["numbers"]
    assert all(0 < apart < 0.01 for apart in numbers["relative difference"])
    assert numbers["gradient scales moved"] and numbers["before the change"] and not numbers["from the change on"]


@pytest.mark.slow
def test_scales_are_kept(outcome: dict[str, Any]) -> None:
    kept = outcome["kept_scales"]
    assert kept["with"] and kept["other history"] and not kept["without"]
    # 4 layers, 4 matrices and attention, scales and histories forward and backward; none where none has been used.
    assert (kept["entries"], kept["fresh"], kept["dtypes"]) == (4 * 5 * 4, 0, ["torch.float32"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [pytest.param("RuntimeError('no cuDNN here')", marks=pytest.mark.long), "OSError('libcuda.so.1')"]
)
def test_an_installation_that_does_not_load_is_hidden(error: str, tmp_path: Path) -> None:
    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text(f"from transformer_engine import pytorch\nraise {error}\n")
    (package / "pytorch.py").write_text("")
    metadata = tmp_path / "transformer_engine-2.20.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: transformer-engine\nVersion: 2.20.2\n")
    with_gpu = "import torch; torch.cuda.is_available = lambda: True; "
    ask = "from model_surgery.megatron.te import availability; print(availability.find()); "
    use = "from megatron.core.extensions.transformer_engine import HAVE_TE; print(HAVE_TE)"
    message = error.split("'")[1]
    output = python("-c", with_gpu + ask + use, path=tmp_path)
    assert f"2.20.2 does not load: {message}" in output and output.endswith("False\n")
    if "cuDNN" in error:
        output = python("-c", ask, path=tmp_path)  # as it is here
        assert "2.20.2 does not load: there is no GPU" in output
        python("-c", "from data_prep.rows import build_rows", path=tmp_path)


def test_nothing_is_installed_here() -> None:
    assert availability.find().version is None and "not installed (extra: gpu)" in availability.find().problem
