from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from pipeline.errors import RecipeError
from pipeline.recalibration.checkpoints.zero_files import load_file


class Pickled:
    """What pickles as a call of getattr, as a member of an Enum does in Python 3.11.0 to 3.11.3."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self.arguments


def test_a_member_of_deepspeeds_enum_is_read_in_the_form_of_older_pythons(tmp_path: Path) -> None:
    torch.save({"stage": Pickled(ZeroStageEnum, "gradients"), "weights": torch.ones(2)}, tmp_path / "file.pt")
    assert load_file(tmp_path / "file.pt")["stage"] is ZeroStageEnum.gradients


@pytest.mark.parametrize("arguments", [(ZeroStageEnum, "mro"), (ZeroStageEnum, "__class__"), (dict, "clear")])
def test_getattr_gives_nothing_else(arguments: tuple[Any, ...], tmp_path: Path) -> None:
    torch.save({"stage": Pickled(*arguments)}, tmp_path / "file.pt")
    with pytest.raises(RecipeError, match="not a readable file of DeepSpeed"):
        load_file(tmp_path / "file.pt")
