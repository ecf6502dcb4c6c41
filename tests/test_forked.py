"""Which processes of tests are forked."""

import os

import pytest

from tests.forked import Starter


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> Starter:
    monkeypatch.setattr("tests.forked._has_gpu", lambda: False)
    return Starter()


def test_what_a_test_sets_for_libraries_starts_a_real_process(
    forking: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert forking.forks(os.environ) and forking.forks({**os.environ, "LANG": "C"})
    for name in ("HF_HOME", "PYTHONHASHSEED", "TORCH_LOGS"):
        assert not forking.forks({**os.environ, name: "/elsewhere"})
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    assert not forking.forks(os.environ)


def test_what_earlier_imports_have_set_does_not(forking: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm_eval and DeepSpeed set such variables; all tests that come after their import would start real processes."""
    monkeypatch.setenv("HF_XET_HIGH_PERFORMANCE", "2")
    forking.begin(real=False)
    assert forking.forks(os.environ)
    forking.begin(real=True)
    assert not forking.forks(os.environ)
