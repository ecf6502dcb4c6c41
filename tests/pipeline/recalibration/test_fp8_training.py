"""Training with the layers of Transformer Engine, and in FP8, by the stand-in for the CPU (tests/te_stand_in)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.layout import Layout
from pipeline.errors import RecipeError
from pipeline.recalibration import run as stage
from pipeline.recalibration.checkpoints.fp8 import FP8_FILE, FP8_KEY
from pipeline.recalibration.checkpoints.zero_files import load_file as load_deepspeed
from pipeline.recalibration.layer_choice import Device
from pipeline.recalibration.metrics import read_events
from pipeline.recipe.recalibration import RecalibrationConfig
from pipeline.tools.reshard import reshard

pytestmark = pytest.mark.real_processes  # Their Transformer Engine is found at import.

Train = Callable[..., list[dict[str, float]]]
Settings = Callable[..., RecalibrationConfig]
FP8 = {"attention": "on", "linear": "on", "pad_head_dim": True, "amax_history": 4, "first_layers_bf16": 1}
STEP_4 = "step-00000004"
DEVICE = Device("a CPU that stands in for Hopper", (10, 0), "2.20.2", cudnn=(9, 20, 0))
"""To the process that starts the others, a later one, so that they decide."""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training processes in which Transformer Engine works, and a GPU of the Hopper kind where they are started."""
    monkeypatch.setattr(stage, "WORKER", "tests.te_stand_in.worker")
    monkeypatch.setattr("pipeline.recalibration.checks.this_device", lambda: DEVICE)


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("sequence_parallel", [pytest.param(False, marks=pytest.mark.long), True])
def test_its_layers_train_as_transformers_does(
    sequence_parallel: bool,
    models: dict[str, Path],
    layouts: dict[str, Path],
    shards: Path,
    settings: Settings,
    train: Train,
    reference: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """TP 2 x DP 2, against transformers and torch in one process; then the weights go on in torch's layers."""
    expected = reference(models["qwen2"], shards, tmp_path / "rows", weight_decay=0.1)
    changes = {"sequence_parallel": sequence_parallel, "zero_stage": 3 if sequence_parallel else 1, "weight_decay": 0.1}
    config = settings(layers="transformer_engine", **changes)
    out = tmp_path / "out"
    lines = train(config, layouts["qwen2"], shards, out)[1:]
    assert [line["loss"] for line in lines] == pytest.approx(expected["losses"], abs=1e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx(expected["grad_norms"], abs=1e-5)
    assert stage.facts_of(_job(out))["layers"] == "transformer_engine"
    if sequence_parallel:
        return
    shutil.rmtree(out / "layout")
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    lines = train(config.model_copy(update={"layers": "torch"}), layouts["qwen2"], shards, out)[1:]
    assert [line["loss"] for line in lines] == pytest.approx(expected["losses"], abs=1e-5)
    layers = [event["layers"] for event in read_events(out) if event["event"] == "started"]
    assert layers == ["transformer_engine", "torch"]


def _job(out: Path) -> Any:
    from pipeline.recalibration.attempt import TrainingSpec

    return TrainingSpec.model_validate_json((out / "job.json").read_bytes())


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
@pytest.mark.long
def test_fp8_goes_on_from_its_scales(
    layouts: dict[str, Path],
    shards: Path,
    settings: Settings,
    train: Train,
    without_measured: Callable[[list[dict]], list[dict]],
    tmp_path: Path,
) -> None:
    """TP 2 x DP 2 in FP8 after a step in bf16: cut off and gone on with, the same; on other ranks, nearly the same."""
    config = settings(precision="fp8", fp8=FP8 | {"warmup_steps": 1})
    whole = tmp_path / "whole"
    lines = train(config, layouts["untied"], shards, whole)
    plain = train(settings(precision="bf16"), layouts["untied"], shards, tmp_path / "plain")
    assert lines[1]["loss"] == plain[1]["loss"]  # the step in bf16
    apart = [abs(line["loss"] / other["loss"] - 1) for line, other in zip(lines[2:], plain[2:], strict=True)]
    assert 0 < max(apart) < 0.01 and min(apart) > 0
    facts = stage.facts_of(_job(whole))
    assert (facts["fp8_attention"], facts["fp8_linear"]) == (True, True)
    assert "heads of 128" in facts["fp8_attention_reason"]

    files = whole / "checkpoints" / STEP_4
    scales = load_deepspeed(files / "mp_rank_00_model_states.pt")[FP8_KEY]
    other_rank = load_deepspeed(files / "mp_rank_01_model_states.pt")[FP8_KEY]
    assert {name.split(".")[2] for name in scales} == {"1"}  # the first layer has none
    assert all((value == other_rank[name]).all() for name, value in scales.items())

    def cut_off(name: str) -> Path:
        """The run as a kill after the checkpoint of step 4 leaves it."""
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copytree(files, folder / "checkpoints" / STEP_4)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
        return folder

    resumed = train(config, layouts["untied"], shards, cut_off("resumed"))
    assert without_measured(resumed) == without_measured(lines)
    assert Layout.load(tmp_path / "resumed" / "layout").digest() == Layout.load(whole / "layout").digest()

    portable = tmp_path / "portable"
    (portable / "checkpoints").mkdir(parents=True)
    reshard(files, tensor_parallel=1, out_dir=tmp_path / STEP_4)
    (tmp_path / STEP_4).rename(portable / "checkpoints" / STEP_4)
    kept = load_file(portable / "checkpoints" / STEP_4 / FP8_FILE)
    assert kept.keys() == scales.keys() and all((kept[name] == scales[name]).all() for name in kept)
    others = train(config, layouts["untied"], shards, portable, tensor_parallel=1)
    assert [line["loss"] for line in others[5:]] == pytest.approx([line["loss"] for line in lines[5:]], rel=5e-3)

    damaged = portable / "checkpoints" / STEP_4 / FP8_FILE
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(RecipeError, match=r"fp8.safetensors: gone, or its bytes are not those written"):
        reshard(damaged.parent, tensor_parallel=2, out_dir=tmp_path / "again")


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_what_the_device_cannot_do_is_found_out_by_trying(
    write_model: Callable[..., Path],
    shards: Path,
    settings: Settings,
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rules allow heads of 16 on Blackwell; the stand-in computes heads of 128 alone."""
    monkeypatch.setenv("DROPE_TEST_CAPABILITY", "10")
    source = write_model(tmp_path / "model", num_attention_heads=2, num_key_value_heads=1)
    convert(SurgeryConfig(tensor_parallel=1), source=source, out_dir=tmp_path / "layout")
    with pytest.raises(RecipeError, match=r"attention = on: it does not run on .* No dot product attention backend"):
        train(settings(precision="fp8", fp8={"attention": "on"}), tmp_path / "layout", shards, tmp_path / "on")
    config = settings(precision="fp8", fp8={"attention": "auto"}, tokens=2 * 8 * 32, schedule={"warmup_steps": 1})
    train(config, tmp_path / "layout", shards, tmp_path / "auto")
    (started,) = [event for event in read_events(tmp_path / "auto") if event["event"] == "started"]
    assert not started["fp8_attention"] and "No dot product attention backend" in started["fp8_attention_reason"]
