"""What of the stack works on this machine, found by trying it."""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from model_surgery.megatron.cpu import accelerator_name
from model_surgery.megatron.te import availability
from model_surgery.megatron.te.settings import FILLED_HEAD_DIM
from pipeline.launch.processes import tools_path
from pipeline.recalibration.layer_agreement import this_device

State = Literal["ok", "absent", "broken"]
_MARK = {"ok": "ok     ", "absent": "absent ", "broken": "BROKEN "}


@dataclass(frozen=True)
class Finding:
    """One part of the stack. absent: not there and only needed for more; broken: needed, or there and not working."""

    name: str
    state: State
    detail: str

    def __str__(self) -> str:
        return f"{_MARK[self.state]} {self.name:<22} {self.detail}"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def examine() -> list[Finding]:
    """Tries every part; takes some seconds for the imports, up to a minute where DeepSpeed's operator is not built."""
    os.environ.setdefault("DS_ACCELERATOR", accelerator_name())
    os.environ["PATH"] = tools_path()
    packages = ("torch", "deepspeed", "megatron.core", "transformers", "datasets", "sentencepiece", "lm_eval")
    return [
        Finding("python", "ok", sys.version.split()[0]),
        *(package(name) for name in packages),
        compiler(),
        attempt("deepspeed CPU operator", build_cpu_operator),
        gpu(),
        transformer_engine(),
        fp8_attention(),
        nccl(),
        slurm(),
    ]


def attempt(name: str, work: Callable[[], str]) -> Finding:
    """Runs `work`; whatever it raises is the finding."""
    try:
        return Finding(name, "ok", work())
    except Exception as error:  # a doctor reports every way in which a part can fail
        return Finding(name, "broken", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")


def package(name: str) -> Finding:
    """Imports a required package and tells its version."""

    def work() -> str:
        importlib.import_module(name)
        return version(name.replace(".", "-").replace("_", "-"))

    return attempt(name, work)


def compiler() -> Finding:
    """The C++ compiler and Python's headers, which DeepSpeed needs to build its CPU operator."""
    path = shutil.which("g++") or shutil.which("c++")
    if path is None:
        return Finding("C++ compiler", "broken", "none on the path; install g++ (Debian: apt-get install g++)")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return Finding("C++ compiler", "broken", "Python.h is missing; install python3-dev")
    return Finding("C++ compiler", "ok", path)


def build_cpu_operator() -> str:
    """Builds (or finds built) the shared-memory operator that DeepSpeed loads in every CPU process."""
    import torch
    from deepspeed.ops.op_builder import ShareMemCommBuilder

    if torch.cuda.is_available():
        return "not needed beside a GPU"
    ShareMemCommBuilder().load(verbose=False)
    return "built"


def gpu() -> Finding:
    """The GPUs that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "absent", "training runs on the CPU over gloo: for trying out, not for real models")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("GPU", "ok", f"{len(names)} x {names[0]}")


def transformer_engine() -> Finding:
    """Transformer Engine, tried as a training tries it; on a machine without a GPU it is not needed."""
    engine = availability.find()
    if engine.version is None:
        state: State = "broken" if engine.is_installed and this_device().capability else "absent"
        return Finding("Transformer Engine", state, f"{engine.problem}; training takes torch's layers, without FP8")
    cudnn = ".".join(map(str, availability.cudnn_version()))
    return Finding("Transformer Engine", "ok", f"{engine.version}, cuDNN {cudnn}")


def fp8_attention() -> Finding:
    """Whether this GPU trains attention in FP8, by a pass through one head of 128, the size that most of them can."""
    device = this_device()
    if device.transformer_engine is None or device.capability is None or device.capability < (9, 0):
        return Finding(
            "FP8 attention", "absent", "needs Transformer Engine and a GPU of compute capability 9.0 or more"
        )
    from model_surgery.megatron.te.trial import reason_against

    reason = reason_against(heads=1, kv_heads=1, head_dim=FILLED_HEAD_DIM, length=512)
    if reason:
        return Finding("FP8 attention", "broken", reason)
    return Finding("FP8 attention", "ok", "trains heads of 128")


def nccl() -> Finding:
    """NCCL, for several GPUs."""
    import torch

    if not torch.distributed.is_nccl_available():
        return Finding("NCCL", "absent", "this torch build has none; several processes talk over gloo")
    return Finding("NCCL", "ok", ".".join(map(str, torch.cuda.nccl.version())))


def slurm() -> Finding:
    """The SLURM client, and the cluster that it talks to. One machine needs neither."""
    if shutil.which("sbatch") is None:
        return Finding("SLURM", "absent", "no sbatch on the path")
    result = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=False)
    answer = " ".join((result.stdout or result.stderr).split())
    if result.returncode != 0:
        return Finding("SLURM", "absent", f"no cluster: {answer}")
    return Finding("SLURM", "ok", answer)
