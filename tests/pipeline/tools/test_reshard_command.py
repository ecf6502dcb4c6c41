"""`drope reshard` and what a user does with it, as a shell calls them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from pipeline.recalibration.metrics import read_metrics
from pipeline.runs.manifest import Manifest

STEP_6 = "step-00000006"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.real_processes
def test_a_run_goes_on_at_another_tp_degree(write_recipe: Callable[..., Path], drope: Any, tmp_path: Path) -> None:
    """The three commands that --help shows; and the run before it is left as it was."""
    recipe, runs = write_recipe(), tmp_path / "runs"
    stages = [option for stage in ("data", "surgery", "recalibration") for option in ("--stage", stage)]

    def succeed(*arguments: object) -> str:
        result = drope(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    succeed("run", recipe, *stages)
    old, new = runs / "tiny" / "recalibration", runs / "new" / "recalibration"
    checkpoint, out = old / "checkpoints" / STEP_6, new / "checkpoints" / STEP_6
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    refused = drope("reshard", checkpoint, "--tensor-parallel", 1, "--out", out)
    assert refused.returncode == 2 and "is not the folder of a run yet" in refused.stderr
    changes = ("name=new", "surgery.tensor_parallel=1")
    succeed("surgery", recipe, *changes)
    said = succeed("reshard", checkpoint, "--tensor-parallel", 1, "--out", out)
    assert f"training checkpoint of step 6 for TP 1: {out}" in said
    facts = succeed("inspect", out, "--verify")
    assert "6, 768 tokens" in facts and "all tensors as recorded" in facts
    succeed("run", recipe, *stages, *changes)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    expected, got = read_metrics(old), read_metrics(new)
    assert [line["step"] for line in got] == list(range(13))
    assert got[:7] == expected[:7]
    assert [line["loss"] for line in got[7:]] == pytest.approx([line["loss"] for line in expected[7:]], abs=1e-5)
    manifest = Manifest.load(new)
    assert manifest.facts["continued_from"]["step"] == 6
    assert manifest.facts["validation_loss_before"] == expected[0]["validation_loss"]
    assert "complete, skipped" in succeed("run", recipe, *stages, *changes)


@pytest.fixture(scope="module")
def layout(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layout")
    convert(SurgeryConfig(tensor_parallel=2), source=tiny_model, out_dir=folder)
    return folder


def test_a_layout_there_and_back(layout: Path, drope: Any, tmp_path: Path) -> None:
    for source, ranks, out in ((layout, 4, tmp_path / "4"), (tmp_path / "4", 2, tmp_path / "2")):
        result = drope("reshard", source, "--tensor-parallel", ranks, "--out", out)
        assert result.returncode == 0, result.stderr
        assert f"layout for TP {ranks}: {out}" in result.stdout
    assert {p.name: p.read_bytes() for p in (tmp_path / "2").iterdir()} == {
        p.name: p.read_bytes() for p in layout.iterdir()
    }


@pytest.mark.parametrize(
    ("path", "ranks", "out", "said"),
    [
        ("nowhere", 2, "out", "nowhere: no such folder"),
        ("empty", 2, "out", "empty: neither a layout (layout.json) nor a training checkpoint"),
        ("layout", 5, "out", "--tensor-parallel 5: the model has 4 query heads; use 4 or less"),
        ("layout", 2, "layout", "is, or lies within, the folder that is read"),
        ("layout", 2, "layout/deep", "is, or lies within, the folder that is read"),
        ("layout", 2, "full", "is there already and not an empty folder"),
        ("damaged", 1, "out", "is damaged: its bytes are not those that layout.json has the digest of"),
        ("step-00000003", 1, "out", "not complete, its save was cut off"),
    ],
)
def test_bad_input_is_one_line(
    path: str, ranks: int, out: str, said: str, layout: Path, drope: Any, tmp_path: Path
) -> None:
    for name in ("layout", "damaged"):
        shutil.copytree(layout, tmp_path / name)
    for name in ("empty", "full", "step-00000003"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    weights = tmp_path / "damaged" / "tp01-0000.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    result = drope("reshard", tmp_path / path, "--tensor-parallel", ranks, "--out", tmp_path / out)
    assert result.returncode == 2
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
