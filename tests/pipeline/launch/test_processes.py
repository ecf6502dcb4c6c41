"""Worker processes that fail."""

import socket
from pathlib import Path

import pytest

from pipeline.errors import StageFailed
from pipeline.launch.processes import torchrun

pytestmark = pytest.mark.real_processes

HOW = {
    "raises": "failed: ValueError: row 7 holds no token; its traceback stands above",
    "exits": "ended with code 3",
    "SIGKILL": "was ended by SIGKILL: by a user, or by the system where memory had run out (see dmesg)",
    "SIGSEGV": "was ended by SIGSEGV",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_the_rank_that_failed_first_is_named(how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageFailed) as error:
        torchrun("tests.pipeline.launch.failing_worker", [how], processes=2, log=tmp_path / "log")
    assert str(error.value) == f"rank 1 on {socket.gethostname()} {HOW[how]}"
    stderr_text = capfd.readouterr().err
    assert "Root Cause" not in stderr_text  # torchrun's own page
    assert ("row 7 holds no token" in stderr_text) == (how == "raises")
