"""Which device an evaluation takes."""

import pytest
import torch

from eval.device import pick_device
from eval.errors import EvaluationError


@pytest.mark.parametrize("here", [None, "mps", "cuda"])
def test_a_device_that_is_not_here_is_refused(here: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = None if here is None else torch.device(here)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto") == torch.device(here or "cpu")
    if here == "cuda":
        assert pick_device("cuda") == torch.device("cuda")
    else:
        with pytest.raises(EvaluationError, match="device = cuda: no CUDA device is visible here; use auto or cpu"):
            pick_device("cuda")
