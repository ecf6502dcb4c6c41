"""Training checkpoints of any ranks made portable, cut for another TP degree, and gone on with, in real processes."""

import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from foundation.errors import DiskError
from model_surgery.architectures import rules
from model_surgery.errors import SurgeryError
from model_surgery.layout import Layout, read_joined, read_rank
from pipeline.errors import RecipeError
from pipeline.launch.processes import torchrun
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.checkpoints.sources import open_source
from pipeline.recalibration.checkpoints.state import PARTS, read_state
from pipeline.recalibration.checkpoints.zero_files import load_file, spans_of_stage_3
from pipeline.recalibration.history import continued_from
from pipeline.recalibration.metrics import read_metrics
from pipeline.recalibration.phases import phases, refuse_unfit
from pipeline.recipe.recalibration import RecalibrationConfig, ResolvedTraining
from pipeline.tools.reshard import reshard

Settings = Callable[..., RecalibrationConfig]
Train = Callable[..., list[dict[str, float]]]
STEP_4 = "step-00000004"


class Ranks(NamedTuple):
    tensor_parallel: int
    data_parallel: int
    zero_stage: int


class Case(NamedTuple):
    """A training at TP 2, and how far the losses of steps 5 to 10 may be apart where others go on with it."""

    model: str
    precision: str
    begun: Ranks
    continued: Ranks
    bound: float
    portable: bool = False
    """Whether drope reshard made the checkpoint portable first; else the others read DeepSpeed's files."""


ODD_ZERO_1, ODD_ZERO_3, QWEN2_ZERO_2 = Ranks(2, 1, 1), Ranks(2, 2, 3), Ranks(2, 1, 2)
# bf16 rounds the sums of one rank and of two differently, as it does in every step of an unbroken run at TP 1.
CASES = {
    "zero1-tp2-to-tp1dp2": Case("odd", "fp32", ODD_ZERO_1, Ranks(1, 2, 1), 1e-5),
    "zero3-tp2dp2-to-tp1": Case("odd", "fp32", ODD_ZERO_3, Ranks(1, 1, 3), 1e-5),
    "zero3-tp2dp2-to-zero2": Case("odd", "fp32", ODD_ZERO_3, Ranks(2, 1, 2), 1e-5, True),
    "qwen2-zero2-tp2-to-tp3": Case("qwen2", "fp32", QWEN2_ZERO_2, Ranks(3, 1, 1), 1e-5),
    "zero3-same-ranks": Case("odd", "fp32", ODD_ZERO_3, ODD_ZERO_3, 0.0, True),
    "bf16-zero1-same-ranks": Case("odd", "bf16", Ranks(2, 2, 1), Ranks(2, 2, 1), 0.0, True),
    "bf16-zero1-to-tp1-zero3": Case("odd", "bf16", Ranks(2, 2, 1), Ranks(1, 2, 3), 2e-2),
}
LONG = (
    "qwen2-zero2-tp2-to-tp3",
    "bf16-zero1-to-tp1-zero3",
    "zero3-tp2dp2-to-tp1",
    "zero3-same-ranks",
    "bf16-zero1-same-ranks",
)


@pytest.fixture(scope="module")
def begun(
    layouts: dict[str, Path], shards: Path, settings: Settings, train: Train, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The folder of a whole training of ten steps with checkpoints of steps 4 and 8, made once for each kind."""
    trained_folders: dict[tuple, Path] = {}

    def whole(model: str, precision: str, ranks: Ranks) -> Path:
        key = (model, precision, ranks)
        if key not in trained_folders:
            folder = tmp_path_factory.mktemp("whole")
            train(configured(settings, precision, ranks), layouts[model], shards, folder)
            trained_folders[key] = folder
        return trained_folders[key]

    return whole


def configured(settings: Settings, precision: str, ranks: Ranks) -> RecalibrationConfig:
    sizes = {"data_parallel": ranks.data_parallel, "zero_stage": ranks.zero_stage}
    return settings(precision=precision, weight_decay=0.1, **sizes)


@pytest.fixture
def checkpoint(begun: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a ZeRO 3 checkpoint at TP 2 x DP 2, to be damaged."""
    source = begun("odd", "fp32", ODD_ZERO_3)
    return Path(shutil.copytree(source / "checkpoints" / STEP_4, tmp_path / "run" / "checkpoints" / STEP_4))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[pytest.mark.long] * (name in LONG)) for name, case in CASES.items()]
)
def test_training_goes_on_with_other_ranks(
    case: Case,
    begun: Callable[..., Path],
    layouts: dict[str, Path],
    shards: Path,
    settings: Settings,
    train: Train,
    without_measured: Callable[[list[dict]], list[dict]],
    tmp_path: Path,
) -> None:
    """Nothing but the number of ranks, or the ZeRO stage, is changed; the layout stays the one for TP 2."""
    whole, out = begun(case.model, case.precision, case.begun), tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    if case.portable:
        reshard(whole / "checkpoints" / STEP_4, tensor_parallel=2, out_dir=tmp_path / STEP_4)
        (tmp_path / STEP_4).rename(out / "checkpoints" / STEP_4)
        # What a training that was begun here before has left is not what this one goes on with.
        (out / "metrics.jsonl").write_text('{"step": 0, "validation_loss": 1e9}\n{"step": 1, "loss": 1e9}\n')
    else:
        shutil.copytree(whole / "checkpoints" / STEP_4, out / "checkpoints" / STEP_4)
        shutil.copy(whole / "metrics.jsonl", out)

    config = configured(settings, case.precision, case.continued)
    degree = case.continued.tensor_parallel
    expected, lines = read_metrics(whole), train(config, layouts[case.model], shards, out, tensor_parallel=degree)
    assert [line["step"] for line in lines] == list(range(11))
    assert lines[:5] == expected[:5]  # not trained again: even the measured speed is the one of the first training
    apart = max(abs(line["loss"] - other["loss"]) for line, other in zip(lines[5:], expected[5:], strict=True))
    print(f"losses apart by at most {apart:.1e}")
    assert apart <= case.bound
    # The next checkpoint is of the new ranks, and says so.
    state = read_state(out / "checkpoints" / "step-00000008")
    assert (state.tensor_parallel, state.data_parallel, state.zero_stage) == case.continued
    assert bool(continued_from(out)) == case.portable
    if case.bound == 0.0:
        assert Layout.load(out / "layout").digest() == Layout.load(whole / "layout").digest()
        assert without_measured(lines) == without_measured(expected)
    trained = Layout.load(out / "layout")
    assert trained.tensor_parallel == degree
    for entry in trained.tensors:  # reading refuses padding that is not zero
        read_joined(out / "layout", trained, entry)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "precision", "ranks"),
    [("odd", "fp32", ODD_ZERO_1), ("odd", "fp32", ODD_ZERO_3), ("qwen2", "fp32", QWEN2_ZERO_2)],
    ids=["zero1", "zero3", "qwen2-zero2"],
)
def test_there_and_back_gives_the_same_bytes(
    model: str, precision: str, ranks: Ranks, begun: Callable[..., Path], tmp_path: Path
) -> None:
    source = begun(model, precision, ranks) / "checkpoints" / STEP_4
    for out, path, tensor_parallel in [("2", source, 2), ("1", source, 1), ("4", "2", 4), ("back", "4", 2)]:
        reshard(tmp_path / path, tensor_parallel=tensor_parallel, out_dir=tmp_path / out)
    reshard(tmp_path / "back", tensor_parallel=1, out_dir=tmp_path / "1-back")
    assert contents(tmp_path / "back") == contents(tmp_path / "2")
    assert contents(tmp_path / "1-back") == contents(tmp_path / "1")
    assert read_state(tmp_path / "1").updates == 4
    assert len(read_metrics(tmp_path / "1")) == 5
    for part in PARTS:
        layout = Layout.load(tmp_path / "2" / part)
        assert layout.trained_steps == 4 and layout.trained_tokens == 4 * 8 * 32
        assert layout.shape.padded(2) != layout.shape


@pytest.mark.slow
def test_what_is_read_is_what_the_ranks_computed_with(begun: Callable[..., Path], tmp_path: Path) -> None:
    """In fp32 DeepSpeed also stores the model's weights, whole, beside the flat masters."""
    source = begun("odd", "fp32", ODD_ZERO_1) / "checkpoints" / STEP_4
    reshard(source, tensor_parallel=2, out_dir=tmp_path / "out")
    layout = Layout.load(tmp_path / "out" / "weights")
    for rank in range(2):
        stored = load_file(source / f"mp_rank_0{rank}_model_states.pt")["module"]
        slices = read_rank(tmp_path / "out" / "weights", layout, rank)
        assert slices.keys() == {rule.target for rule in rules(layout.shape)}
        assert all(torch.equal(piece, stored[name]) for name, piece in slices.items())


@pytest.mark.slow
def test_zero_3_in_many_sub_groups(
    begun: Callable[..., Path], layouts: dict[str, Path], shards: Path, settings: Settings, tmp_path: Path
) -> None:
    """Models of billions of weights are stored in several; here 4000 weights each. The state is the same."""
    whole, out = begun("odd", "fp32", ODD_ZERO_3), tmp_path / "out"
    sizes = {"tensor_parallel": 2, "layout": layouts["odd"], "shards": shards, "out_dir": out}
    config = ResolvedTraining.model_validate(configured(settings, "fp32", ODD_ZERO_3).model_dump())
    spec = TrainingSpec(config=config, position_embedding="none", **sizes)
    out.mkdir()
    worker, log = "tests.pipeline.recalibration.small_groups_worker", tmp_path / "log"
    torchrun(worker, [spec.model_dump_json()], processes=4, log=log)
    checkpoint = out / "checkpoints" / STEP_4
    assert len(load_file(checkpoint / "zero_pp_rank_0_mp_rank_00_model_states.pt")["param_shapes"]) >= 4
    for name, path in (("small", checkpoint), ("one", whole / "checkpoints" / STEP_4)):
        reshard(path, tensor_parallel=1, out_dir=tmp_path / name)
    assert read_state(tmp_path / "small").digests == read_state(tmp_path / "one").digests


def test_spans_of_stage_3_lie_end_to_end_with_padding() -> None:
    groups = [{"a": torch.Size([5]), "b": torch.Size([2, 2])}, {"c": torch.Size([1])}]
    assert {name: tuple(vars(span).values()) for name, span in spans_of_stage_3(groups, 2, 0).items()} == {
        "a": (0, 0, 3),
        "b": (0, 3, 2),
        "c": (1, 0, 1),
    }
    assert {name: span.numel for name, span in spans_of_stage_3(groups, 2, 1).items()} == {"a": 2, "b": 2, "c": 0}


@pytest.mark.slow
def test_damaged_checkpoints_are_refused_and_leave_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def refusal(path: Path = checkpoint, tensor_parallel: int = 1) -> str:
        before = contents(tmp_path)
        with pytest.raises((RecipeError, SurgeryError)) as refused:
            reshard(path, tensor_parallel=tensor_parallel, out_dir=tmp_path / "deep" / "out")
        assert contents(tmp_path) == before and not (tmp_path / "deep").exists()
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "the model has 6 query heads; use 6 or less" in refusal(tensor_parallel=7)

    victim = checkpoint / "zero_pp_rank_1_mp_rank_01_optim_states.pt"
    whole = victim.read_bytes()
    with zipfile.ZipFile(victim) as archive:
        tensor = max(archive.infolist(), key=lambda item: item.file_size)
    flipped = bytearray(whole)
    flipped[tensor.header_offset + tensor.file_size // 2] ^= 1
    victim.write_bytes(flipped)
    assert f"{victim.name}: damaged" in refusal()
    victim.write_bytes(whole[:-100])
    assert f"{victim.name}: cut or damaged" in refusal()
    victim.unlink()
    assert "no file of optimizer states of TP rank 1, data-parallel rank 1" in refusal()
    victim.write_bytes(whole)

    model_states = checkpoint / "zero_pp_rank_0_mp_rank_01_model_states.pt"
    shapes = model_states.read_bytes()
    model_states.unlink()
    assert f"{model_states.name}: no such file" in refusal()
    model_states.write_bytes(shapes)

    state = (checkpoint / "state.json").read_text()
    (checkpoint / "state.json").write_text(state.replace('"tokens"', '"token"'))
    assert "state.json: not the state of a checkpoint" in refusal()
    (checkpoint / "state.json").unlink()
    assert "has no state.json" in refusal()
    (checkpoint / "state.json").write_text(state)

    (checkpoint / "complete").unlink()
    assert "not complete, its save was cut off; complete here: none" in refusal()
    (checkpoint / "complete").touch()

    reshard(checkpoint, tensor_parallel=1, out_dir=tmp_path / "portable")
    part = tmp_path / "portable" / "exp_avg"
    shutil.rmtree(part)
    shutil.copytree(tmp_path / "portable" / "exp_avg_sq", part)
    assert "exp_avg: not the layout that state.json has the digest of" in refusal(tmp_path / "portable")
    shutil.rmtree(part)
    assert "layout.json: no such file" in refusal(tmp_path / "portable")


@pytest.mark.slow
def test_no_code_of_a_checkpoint_is_run(checkpoint: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "run-by-the-file",)

    path = checkpoint / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": Evil()}, path, pickle_module=pickle)
    with pytest.raises(RecipeError, match="not a readable file of DeepSpeed"):
        open_source(checkpoint)
    assert not (tmp_path / "run-by-the-file").exists()


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["300k"], indirect=True)
def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint: Path, small_disk: Path) -> None:
    with pytest.raises(DiskError, match="the disk is full"):
        reshard(checkpoint, tensor_parallel=1, out_dir=small_disk / "a" / "out")
    assert list(small_disk.iterdir()) == []


@pytest.mark.slow
def test_padding_that_is_not_zero_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """The second rank's slice of the feed-forward's last column is padding; so is it in both moments."""
    path = checkpoint / "zero_pp_rank_1_mp_rank_01_optim_states.pt"
    stored = load_file(path)
    moments = stored["optimizer_state_dict"]["optimizer_state_dict"]["state"][0]
    moments["exp_avg"] = torch.ones_like(moments["exp_avg"])
    torch.save(stored, tmp_path / "changed.pt")
    (tmp_path / "changed.pt").rename(path)
    with pytest.raises(SurgeryError, match=r"exp_avg of .*: its padding is not zero"):
        reshard(checkpoint, tensor_parallel=1, out_dir=tmp_path / "out")


@pytest.mark.slow
def test_a_training_refuses_a_checkpoint_that_is_not_for_it(
    checkpoint: Path, layouts: dict[str, Path], settings: Settings
) -> None:
    config, layout = settings(zero_stage=3), Layout.load(layouts["odd"])

    def check(position: str = "none", of: Layout = layout, **changes: object) -> None:
        changed = config.model_copy(update=changes)
        refuse_unfit("it", read_state(checkpoint), changed, phases(changed, position, of, 32), of, 32)

    def refusal(**changes: object) -> str:
        with pytest.raises(RecipeError) as refused:
            check(**changes)
        return str(refused.value)

    check()
    check(zero_stage=1, data_parallel=1)
    assert "position_embedding = none" in refusal(position="rope")
    assert "of another model" in refusal(of=layout.model_copy(update={"source_fingerprint": "another"}))
    assert "1,024 tokens in 4 steps, but 2,048" in refusal(batch=16, tokens=10 * 16 * 32)
    assert "of step 4, and recalibration.tokens is enough for 4" in refusal(tokens=4 * 8 * 32)
    assert "of a training with position_embedding = none at that step" in refusal(drop_at_step=6)
    check(drop_at_step=2)
