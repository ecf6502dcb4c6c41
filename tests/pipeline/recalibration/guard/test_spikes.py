"""What counts as a spike, and that a guard's state is its lines' alone."""

import json
import math
import random
import time

import pytest

from pipeline.recalibration.guard.spikes import Guard
from pipeline.recipe.recalibration import GuardConfig

CONFIG = GuardConfig(window=64, warmup=16, patience=3)


def calm_numbers(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    """Losses that fall from 4 to 3 with noise of 0.05, gradient norms around 1."""
    draw = random.Random(seed)
    return [
        (3 + math.exp(-step / 100) + draw.gauss(0, 0.05), math.exp(draw.gauss(0, 0.15))) for step in range(1, steps + 1)
    ]


def guard_after(numbers: list[tuple[float, float]], config: GuardConfig = CONFIG) -> Guard:
    guard = Guard(config)
    for loss, grad_norm in numbers:
        guard.observe(loss, grad_norm, skipped=False)
    return guard


def test_a_usual_run_has_no_spikes() -> None:
    guard = Guard(CONFIG)
    for loss, grad_norm in calm_numbers(2000):
        assert guard.judge(loss, grad_norm) is None
        guard.observe(loss, grad_norm, skipped=False)


@pytest.mark.parametrize(
    ("loss", "grad_norm", "expected"),
    [
        (6.5, 1.0, "loss 6.5 is"),
        (3.1, 40.0, "gradient norm 40 is"),
        (math.nan, 1.0, "loss is not finite (nan)"),
        (3.1, math.inf, "gradient norm is not finite (inf)"),
        (0.5, 1e-9, None),  # only high ones
    ],
)
def test_what_is_refused_and_why(loss: float, grad_norm: float, expected: str | None) -> None:
    reason = guard_after(calm_numbers(300)).judge(loss, grad_norm)
    assert reason is None if expected is None else reason.startswith(expected)


def test_the_score_is_the_robust_one() -> None:
    # Deviations from the median 3 are 0, 1, 1, 2 and 97: their median is 1.
    config = CONFIG.model_copy(update={"warmup": 5, "loss_rise": 1000.0})
    guard = guard_after([(loss, 1.0) for loss in (1.0, 2.0, 3.0, 4.0, 100.0)], config)
    assert guard.judge(3 + 1.4826 * 7.9, 1.0) is None
    reason = guard.judge(3 + 1.4826 * 8.1, 1.0)
    assert reason == "loss 15.01 is 8.1 robust standard deviations above the median 3 of 5 steps"


def test_noise_of_a_calm_run_is_no_spike() -> None:
    guard = guard_after([(2.0, 0.1)] * 64)
    assert guard.judge(2.15, 0.3) is None
    assert guard.judge(2.17, 0.1).startswith("loss 2.17 is 8.5 robust")
    assert guard.judge(2.0, 0.34).startswith("gradient norm 0.34 is 12.2 robust")


def test_gradients_of_zero_are_no_error() -> None:
    guard = guard_after([(2.0, 0.0)] * 64)
    assert guard.judge(2.0, 0.0) is None


def test_nothing_but_numbers_that_are_not_finite_counts_in_the_warmup_or_when_disabled() -> None:
    young = guard_after([(3.0, 1.0)] * 15)
    disabled = guard_after([(3.0, 1.0)] * 300, CONFIG.model_copy(update={"enabled": False}))
    for guard in (young, disabled):
        assert guard.judge(300.0, 1e6) is None
        assert guard.judge(math.nan, 1.0)
        assert guard.judge(3.0, math.nan)
    young.observe(3.0, 1.0, skipped=False)
    assert young.judge(300.0, 1.0)


def test_only_accepted_values_are_compared_with() -> None:
    guard = guard_after([(3.0, 1.0)] * 64)
    for _ in range(200):
        guard.observe(9.0, 50.0, skipped=True)
        guard.observe(math.nan, math.inf, skipped=True)
    assert guard.judge(9.0, 1.0) == guard_after([(3.0, 1.0)] * 64).judge(9.0, 1.0) is not None
    for _ in range(64):
        guard.observe(9.0, 50.0, skipped=False)
    assert guard.judge(9.1, 50.0) == "loss 9.1 is more than 2 above the lowest median so far, 3"


def test_a_slow_rise_is_found() -> None:
    """One so slow that it stays within a few deviations of the median, which follows."""
    guard, rise = Guard(CONFIG), 0.005
    for step in range(2000):
        reason = guard.judge(3 + rise * step, 1.0)
        if reason:
            break
        guard.observe(3 + rise * step, 1.0, skipped=False)
    assert reason == "loss 5.04 is more than 2 above the lowest median so far, 3.038"


def test_a_row_of_skips_uses_up_the_patience() -> None:
    guard, disabled = Guard(CONFIG), Guard(CONFIG.model_copy(update={"enabled": False}))
    for skipped, expected in ((True, 1), (True, 2), (False, 0), (True, 1), (True, 2), (True, 3)):
        assert not guard.must_go_back
        for each in (guard, disabled):
            each.observe(3.0, 1.0, skipped)
            assert each.skips_in_a_row == expected
    assert guard.must_go_back
    assert not disabled.must_go_back


def test_a_resumed_guard_decides_as_the_one_that_never_stopped() -> None:
    draw = random.Random(1)
    numbers = [
        (loss * draw.choice([1, 1, 1, 1, 2]), norm * draw.choice([1, 1, 1, 1, 60])) for loss, norm in calm_numbers(700)
    ]
    numbers[100] = numbers[400] = (math.nan, math.inf)
    whole, file, decisions = Guard(CONFIG), ['{"step": 0, "validation_loss": 3.1}'], []
    for step, (loss, norm) in enumerate(numbers, 1):
        reason = whole.judge(loss, norm)
        decisions.append(reason)
        whole.observe(loss, norm, skipped=reason is not None)
        finite = {"loss": loss, "grad_norm": norm} if math.isfinite(loss) else {"loss": None, "grad_norm": None}
        file.append(json.dumps({"step": step, **finite} | ({"skipped": reason} if reason else {})))
    assert 100 < sum(reason is not None for reason in decisions) < 400
    for stop in (5, 101, 333):
        resumed = Guard(CONFIG)
        resumed.replay(json.loads(line) for line in file[: stop + 1])
        for (loss, norm), expected in zip(numbers[stop:], decisions[stop:], strict=True):
            assert resumed.judge(loss, norm) == expected
            resumed.observe(loss, norm, skipped=expected is not None)
        assert resumed.skips_in_a_row == whole.skips_in_a_row


def test_it_costs_nearly_nothing() -> None:
    config = GuardConfig()
    lines = [{"step": s, "loss": loss, "grad_norm": norm} for s, (loss, norm) in enumerate(calm_numbers(100_000), 1)]
    guard, began = Guard(config), time.perf_counter()
    guard.replay(lines)
    replayed = time.perf_counter() - began
    began = time.perf_counter()
    for line in lines[:2000]:
        guard.judge(line["loss"], line["grad_norm"])
        guard.observe(line["loss"], line["grad_norm"], skipped=False)
    step = (time.perf_counter() - began) / 2000
    print(f"\nreplay of 100,000 lines {replayed:.2f} s; a step {step * 1e6:.0f} microseconds")
    # 0.2 s and 13 microseconds on an idle core; the limits leave room for a busy machine.
    assert replayed < 5
    assert step < 5e-4
