"""Batches that would harm the model, in real trainings: one update skipped, the run gone back, slowed, given up."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StageFailed
from pipeline.recalibration.guard.rollback import read_rollbacks
from pipeline.recalibration.metrics import read_events, read_metrics
from pipeline.recipe.recalibration import RecalibrationConfig

Train = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[int]], None]:
    """From now on these global batches have a loss that is not a number."""
    monkeypatch.setattr("pipeline.recalibration.run.WORKER", "tests.pipeline.recalibration.poisoned_worker")
    return lambda numbers: monkeypatch.setenv("POISONED_BATCHES", json.dumps([*numbers]))


@pytest.mark.slow
def test_one_skip_then_a_return_that_passes_over_the_batches(
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Train,
    poison: Callable[[Iterable[int]], None],
    tmp_path: Path,
) -> None:
    """Batch 3 is bad: one skip. Batches 6 and 7 are: back to step 4, whose next step then reads batch 8."""
    poison([3, 6, 7])
    config = settings(guard={"patience": 2}, checkpoint_every=2, keep_checkpoints=3)
    lines = train(config, layouts["untied"], shards, tmp_path / "out")
    assert [line["step"] for line in lines] == list(range(11))
    # No rows are left for the last three steps: they read batches 1 to 3 again.
    assert [line["step"] for line in lines if "skipped" in line] == [3, 10]
    assert lines[3]["loss"] is None and lines[3]["skipped"] == "loss is not finite (nan)"
    (rollback,) = read_rollbacks(tmp_path / "out")
    assert (rollback.step, rollback.to_step, rollback.first_batch, rollback.lr_scale) == (7, 4, 8, 1.0)
    events = [(event["event"], event["step"]) for event in read_events(tmp_path / "out")]
    assert [one for one in events if one[0] != "checkpoint"] == [
        *[("started", 0), ("skip", 3), ("skip", 6), ("skip", 7), ("rollback", 7), ("started", 4), ("skip", 10)]
    ]


@pytest.mark.slow
@pytest.mark.long
def test_trouble_that_recurs_lowers_the_learning_rate_and_then_ends_the_run(
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Train,
    poison: Callable[[Iterable[int]], None],
    tmp_path: Path,
) -> None:
    poison(range(4, 100))
    config = settings(guard={"patience": 1, "rollbacks": 2}, checkpoint_every=2, data_parallel=1)
    with pytest.raises(StageFailed, match=r"stopped at step 3: .*all 2 of guard.rollbacks are used up"):
        train(config, layouts["untied"], shards, tmp_path / "out")
    first, second = read_rollbacks(tmp_path / "out")
    assert (first.step, first.to_step, first.first_batch, first.lr_scale) == (4, 2, 5, 1.0)
    assert (second.step, second.to_step, second.first_batch, second.lr_scale) == (3, 2, 6, 0.5)
    kinds = [event["event"] for event in read_events(tmp_path / "out")]
    assert kinds.count("rollback") == 2 and kinds[-1] == "diverged"
    lines = read_metrics(tmp_path / "out")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[3]["lr"] == pytest.approx(0.5 * 3e-3)  # the warm-up's last step, at half the rate


@pytest.mark.long
@pytest.mark.slow
def test_a_checkpoint_from_before_the_first_update_serves_other_ranks(
    layouts: dict[str, Path],
    shards: Path,
    settings: Callable[..., RecalibrationConfig],
    train: Train,
    poison: Callable[[Iterable[int]], None],
    tmp_path: Path,
) -> None:
    """The first update is skipped, so that Adam has no state at step 1, and TP 2, ZeRO 1 becomes TP 1, ZeRO 3."""
    poison([1])
    whole = train(settings(checkpoint_every=1, keep_checkpoints=9), layouts["untied"], shards, tmp_path / "out")
    for checkpoint in (tmp_path / "out" / "checkpoints").glob("step-*"):
        if checkpoint.name != "step-00000001":
            shutil.rmtree(checkpoint)
    lines = train(settings(zero_stage=3), layouts["untied"], shards, tmp_path / "out", tensor_parallel=1)
    assert lines[:2] == whole[:2] and lines[1]["skipped"]
    losses = [[line["loss"] for line in training[2:]] for training in (lines, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 9
