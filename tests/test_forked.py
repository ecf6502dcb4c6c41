"""Which processes of tests are forked."""

import importlib
import os

from tests.forked import Starter, must_import_anew


def test_what_libraries_set_when_they_are_imported_starts_no_real_process() -> None:
    """Else the first test that imports one of them would make all that come after it start real ones, in silence."""
    for library in ("deepspeed", "lm_eval", "megatron.core", "accelerate", "datasets"):
        importlib.import_module(library)
    assert not must_import_anew(os.environ)


def test_what_a_test_sets_for_libraries_starts_a_real_process(starter: Starter) -> None:
    for name in ("HF_HOME", "PYTHONHASHSEED", "HF_XET_HIGH_PERFORMANCE"):
        assert must_import_anew({**os.environ, name: "/elsewhere"})
        assert not starter.forks({**os.environ, name: "/elsewhere"})
