"""Learning-rate schedules against numbers worked out by hand, and PyTorch's own cosine."""

import pytest
import torch

from pipeline.recalibration.schedule import lr_factor, warmup_steps
from pipeline.recipe.recalibration import ScheduleConfig

TOKENS_PER_STEP = 512


def factors(updates: int, **settings: object) -> list[float]:
    schedule = ScheduleConfig.model_validate(settings)
    return [lr_factor(update, updates, schedule, TOKENS_PER_STEP) for update in range(1, updates + 1)]


def test_constant_rises_and_stays() -> None:
    assert factors(6, kind="constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_no_warmup_starts_at_the_peak() -> None:
    assert factors(3, kind="constant", warmup_steps=0) == [1.0, 1.0, 1.0]


def test_cosine_equals_torchs_and_ends_at_the_minimum() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    expected = []
    for _ in range(20):
        optimizer.step()
        reference.step()
        expected.append(reference.get_last_lr()[0])
    assert factors(25, kind="cosine", warmup_steps=5, min_lr_ratio=0.1)[5:] == pytest.approx(expected, abs=1e-9)


def test_wsd_has_the_published_stable_part() -> None:
    """SmolLM-1.7B's: 600 steps of warm-up, 96,000 stable, 23,400 of cosine decay to 10%."""
    values = factors(120_000, kind="wsd", warmup_steps=600, decay_steps=23_400, min_lr_ratio=0.1)
    assert values[599] == 1.0
    assert set(values[599 : 600 + 96_000]) == {1.0}
    assert values[96_600] < 1.0
    assert values[96_600 + 11_699] == pytest.approx(0.55)
    assert values[-1] == pytest.approx(0.1)


def test_wsd_may_decay_linearly() -> None:
    values = factors(10, kind="wsd", warmup_steps=0, decay_steps=4, decay="linear", min_lr_ratio=0.2)
    assert values[:6] == [1.0] * 6
    assert values[6:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_a_warmup_in_tokens_takes_whole_steps() -> None:
    schedule = ScheduleConfig(kind="constant", warmup_tokens=3 * TOKENS_PER_STEP + 1)
    assert ScheduleConfig.model_validate_json(schedule.model_dump_json()) == schedule  # as ranks and recipe.yaml get it
    assert warmup_steps(ScheduleConfig(), TOKENS_PER_STEP) == 100
    assert warmup_steps(schedule, TOKENS_PER_STEP) == 4
    assert factors(5, kind="constant", warmup_tokens=4 * TOKENS_PER_STEP) == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"kind": "cosine", "decay_steps": 5}, "decay_steps must be given with kind: wsd and with no other"),
        ({"kind": "wsd"}, "decay_steps must be given with kind: wsd and with no other"),
        ({"kind": "cosine", "decay": "linear"}, "decay is the shape of wsd's final decay"),
        ({"warmup_steps": 5, "warmup_tokens": 512}, "give one of them"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(settings: dict, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        ScheduleConfig.model_validate(settings)
