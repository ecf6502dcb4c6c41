"""Checkpoints as files: which are kept, what their writer leaves, how damage shows."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from model_surgery.files import file_digest
from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.checkpoints.writer import FAILED, FileWriter, copied
from pipeline.recalibration.guard.rollback import Rollback, step_to_go_back_to
from pipeline.recipe.recalibration import GuardConfig


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"newest": 2, "every": None, "best": None}, {400, 450}),
        ({"newest": 1, "every": 200, "best": None}, {200, 400, 450}),
        ({"newest": 1, "every": None, "best": 100}, {100, 450}),
        ({"newest": 9, "every": 150, "best": 1000}, {50, 100, 150, 200, 400, 450}),
    ],
)
def test_which_checkpoints_are_kept(settings: dict, expected: set[int]) -> None:
    assert folders.kept([450, 50, 100, 150, 200, 400], **settings) == expected


def test_a_checkpoint_appears_whole_under_its_name(tmp_path: Path) -> None:
    (tmp_path / folders.partial_name(7)).mkdir()
    (tmp_path / folders.partial_name(7) / "file").write_text("new")
    (tmp_path / folders.name_of(7)).mkdir()  # of an attempt at the same step
    assert folders.complete(tmp_path) == []
    published = folders.publish(tmp_path, 7)
    assert folders.complete(tmp_path) == [published]
    assert (published / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
    assert folders.step_of(published) == 7
    folders.set_aside(published)
    assert folders.complete(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["damaged-step-00000007"]


def test_a_save_is_a_copy_of_its_moment_and_has_its_digest(tmp_path: Path) -> None:
    writer, weights = FileWriter(asynchronous=True), torch.arange(100_000.0)
    writer.save({"module": OrderedDict(w=weights), "view": weights[:10]}, str(tmp_path / "a.pt"))
    weights.zero_()  # as the next update would change it, while the thread still writes
    files = writer.finish()
    assert files["a.pt"].sha256 == file_digest(tmp_path / "a.pt")
    assert files["a.pt"].bytes == (tmp_path / "a.pt").stat().st_size < 410_000
    loaded = writer.load(str(tmp_path / "a.pt"))
    assert torch.equal(loaded["module"]["w"], torch.arange(100_000.0))
    assert torch.equal(loaded["view"], torch.arange(10.0))
    assert writer.finish() == {}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_file_that_cannot_be_written_is_a_failure(tmp_path: Path, asynchronous: bool) -> None:
    writer = FileWriter(asynchronous=asynchronous)
    with pytest.raises(FileNotFoundError):
        writer.save({}, str(tmp_path / "no folder" / "a.pt"))
        writer.finish()
    assert writer.status == FAILED


def test_tensors_that_are_one_stay_one_in_a_copy() -> None:
    tensor = torch.ones(3)
    copies = copied({"a": tensor, "b": [tensor, (tensor[:2], None, 5)]})
    assert copies["a"] is copies["b"][0] is not tensor
    assert copies["b"][1][0].untyped_storage().nbytes() == 8
    assert copies["b"][1][1:] == (None, 5)


def test_the_step_to_go_back_to_is_before_the_trouble_and_further_back_when_it_recurs() -> None:
    config, calm = GuardConfig(patience=3), [10, 20, 29, 30]
    first = Rollback(step=33, to_step=20, first_batch=34, lr_scale=1.0, reason="a spike")
    assert step_to_go_back_to(calm, 33, 3, (), config) == 30
    assert step_to_go_back_to(calm, 32, 3, (), config) == 29
    assert step_to_go_back_to(calm, 33, 3, (first,), config) == 10
    assert step_to_go_back_to([20], 33, 3, (first,), config) == 20
    assert step_to_go_back_to(calm, 60, 3, (first,), config) == 30
    assert step_to_go_back_to([], 33, 3, (), config) == 0
