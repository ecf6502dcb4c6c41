"""The command line itself."""

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.real_processes


def test_help_names_every_command(drope: Any) -> None:
    result = drope("--help")
    assert result.returncode == 0
    for command in (
        *("run", "plan", "fetch", "prepare-data", "surgery", "recalibrate", "control", "export", "evaluate", "report"),
        *("demo", "submit", "status", "logs", "cancel", "probe", "tune-scale", "inspect", "reshard", "doctor"),
    ):
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        ("pipeline.cli", ("torch", "transformers", "pydantic", "numpy", "yaml")),  # --help answers at once
        ("pipeline.recipe.recipe", ("torch", "transformers")),
        ("pipeline.stages.run, pipeline.tools.plan", ("megatron", "deepspeed", "transformers")),
    ],
)
def test_commands_import_nothing_that_they_do_not_need(modules: str, without: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print([module for module in {without} if module in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_doctor_finds_the_stack_whole(drope: Any) -> None:
    result = drope("doctor", "--json")
    assert result.returncode == 0, result.stdout
    findings = {finding["name"]: finding["state"] for finding in json.loads(result.stdout)}
    for name in ("torch", "deepspeed", "megatron.core", "lm_eval", "C++ compiler", "deepspeed CPU operator"):
        assert findings[name] == "ok"


def test_doctor_says_what_a_missing_compiler_needs(monkeypatch: Any, tmp_path: Any) -> None:
    from pipeline.tools.doctor import compiler

    monkeypatch.setenv("PATH", str(tmp_path))
    finding = compiler()
    assert finding.state == "broken" and "install g++" in finding.detail


def test_doctor_says_what_of_transformer_engine_works(monkeypatch: Any) -> None:
    from model_surgery.megatron.te import availability
    from pipeline.tools import doctor

    assert doctor.transformer_engine().state == "absent"
    assert "needs Transformer Engine and a GPU" in doctor.fp8_attention().detail
    damaged = availability.TransformerEngine(None, "2.20.2 does not load: libcuda.so.1")
    monkeypatch.setattr(availability, "find", lambda: damaged)
    assert doctor.transformer_engine().state == "absent"  # there is no GPU that would want it
    with_gpu = doctor.this_device().__class__("NVIDIA H200", (9, 0), None, damaged.problem)
    monkeypatch.setattr(doctor, "this_device", lambda: with_gpu)
    finding = doctor.transformer_engine()
    assert finding.state == "broken" and "libcuda.so.1; training takes torch's layers" in finding.detail
