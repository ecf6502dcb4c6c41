"""What recalibration settings refuse."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import RecipeError
from pipeline.recalibration.checkpoints.folders import complete, remove_incomplete
from pipeline.recalibration.engine import engine_config, parameter_groups
from pipeline.recalibration.schedule import check_schedule
from pipeline.recipe.recalibration import RecalibrationConfig, ResolvedTraining


def settings(**changes: object) -> RecalibrationConfig:
    return RecalibrationConfig.model_validate({"tokens": 64_000, "batch": 8, "lr": 1e-3} | changes)


def test_steps_are_whole() -> None:
    assert settings(tokens=64_000).steps(64) == 125
    assert settings(tokens=64_511).steps(64) == 125


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("zero_stage", 0, "1, 2 or 3"),  # wrong gradients under TP in bf16, and no gradient norm in fp32
        ("lr", float("inf"), "a finite number"),
        ("weight_decay", float("inf"), "a finite number"),
        ("betas", (0.9, 1.0), "less than 1"),
        ("betas", (-0.1, 0.95), "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_train_are_refused(field: str, value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"\n{field}\S*\n  Input should be {reason} "):
        settings(**{field: value})


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"tokens": 511}, "one step takes 512 tokens"),
        ({"schedule": {"kind": "wsd", "warmup_steps": 100, "decay_steps": 100}}, "take 200 steps"),
        ({"schedule": {"kind": "wsd", "warmup_tokens": 51_200, "decay_steps": 100}}, "take 200 steps"),
        ({"drop_at_step": 125, "schedule": {"warmup_steps": 0}}, "nothing would be trained after the drop"),
    ],
)
def test_a_budget_too_small_for_its_schedule_is_refused(changes: dict, part: str) -> None:
    with pytest.raises(RecipeError, match=part):
        check_schedule(settings(**changes), row_length=64)


def test_accumulation_makes_up_the_global_batch() -> None:
    resolved = ResolvedTraining.of(settings(batch=48), micro_batch=2, data_parallel=4)
    assert engine_config(resolved, parameters=1)["gradient_accumulation_steps"] == 6


def test_a_small_model_takes_no_large_bucket() -> None:
    resolved = ResolvedTraining.of(settings(), micro_batch=2, data_parallel=2)
    buckets = [engine_config(resolved, parameters=n)["zero_optimization"]["reduce_bucket_size"] for n in (9, 10**10)]
    assert buckets == [9, 200_000_000]


def test_norms_do_not_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.RMSNorm(4))
    decayed, spared = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in (decayed, spared)] == [0.1, 0.0]
    assert [p.ndim for p in decayed["params"]] == [2] and [p.ndim for p in spared["params"]] == [1]
    assert len(parameter_groups(model, 0.0)) == 1


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"position_embedding": "rope", "drop_at_step": 3}, "nothing is dropped there"),
        ({"drop_qk_norm": "full"}, "needs drop_at_step"),
        ({"validation_lengths": (2, 4)}, "1 first"),
        ({"validation_lengths": (1, 2, 2)}, "different multiples"),
        ({"micro_batch": 3, "data_parallel": "auto"}, "use batch = 6"),
        ({"micro_batch": 0}, r"\nmicro_batch\S+\n  Input should be greater than or equal to 1 "),
        ({"data_parallel": "all"}, r"\ndata_parallel\S+\n  Input should be a valid integer"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        settings(**changes)


def test_incomplete_checkpoints_are_invisible_and_removed(tmp_path: Path) -> None:
    for step, done in ((4, True), (8, True), (12, False)):
        (tmp_path / f"step-{step:08d}").mkdir()
        if done:
            (tmp_path / f"step-{step:08d}" / "complete").touch()
    (tmp_path / "zero_to_fp32.py").touch()  # DeepSpeed puts its own script beside the checkpoints
    assert [path.name for path in complete(tmp_path)] == ["step-00000004", "step-00000008"]
    remove_incomplete(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000008", "zero_to_fp32.py"]
