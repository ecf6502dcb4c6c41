"""Layouts of the tiny model, shapes by short keyword, and a Megatron-core process group of one."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.shape import ModelShape

torch.set_num_threads(1)


def shape(**sizes: object) -> ModelShape:
    """4 query heads over 2 KV heads of width 8, 2 layers, hidden 32."""
    values: dict[str, object] = {
        "model_type": "llama",
        "layers": 2,
        "hidden": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "ffn": 64,
        "vocab": 96,
        "context": 32,
        "tied": False,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    return ModelShape.model_validate(values | sizes)


@pytest.fixture(scope="session")
def make_shape() -> Callable[..., ModelShape]:
    return shape


@pytest.fixture(scope="session")
def layouts(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The tiny model cut for TP 1 and TP 2, not to be written to."""
    folders = {tp: tmp_path_factory.mktemp(f"layout-tp{tp}") for tp in (1, 2)}
    for tp, folder in folders.items():
        convert(SurgeryConfig(tensor_parallel=tp), source=tiny_model, out_dir=folder)
    return folders


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def layout_copy(layouts: dict[int, Path], tmp_path: Path) -> Path:
    """A copy of the tiny model's TP 2 layout to be damaged."""
    return Path(shutil.copytree(layouts[2], tmp_path / "layout"))


@pytest.fixture(scope="module")
def megatron_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """torch.distributed and Megatron-core's groups in this process alone, and neither afterwards."""
    from megatron.core import parallel_state

    from model_surgery.megatron.cpu import use_cpu_if_no_gpu
    from model_surgery.megatron.model import start_parallel

    patched = {name: getattr(torch.cuda, name) for name in ("current_device", "synchronize")}
    use_cpu_if_no_gpu()
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    start_parallel(1)
    yield
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
    for name, value in patched.items():
        setattr(torch.cuda, name, value)
