"""DeepSpeed's ZeRO checkpoints read in one process: whole slices of every TP rank out of the flat partitions.

Every (TP rank, data-parallel rank) has left one file of flat fp32 vectors, one for each parameter group (ZeRO 3: for
each sub-group): its partition of the masters and of Adam's two moments. DeepSpeed 0.19 stores where parameters lie:

- ZeRO 1 and 2 (in bf16 at stage 1 the BF16_Optimizer): the parameters of a group lie end to end, cut into equal
  partitions between elements; `param_slice_mappings` says which elements of which parameter a partition holds.
- ZeRO 3: every parameter is cut by itself, each rank holding ceil(numel / ranks) elements, the last ones padded; the
  order of the parameters is that of `param_shapes` in the files of model states.
"""

import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from math import ceil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model_surgery.megatron.cpu import accelerator_name
from pipeline.errors import RecipeError
from pipeline.recalibration.checkpoints.fp8 import FP8_KEY
from pipeline.recalibration.checkpoints.state import MOMENTS, WEIGHTS, DeepSpeedState

_OPTIMIZER_FILE = re.compile(r"(bf16_)?zero_pp_rank_(?P<data>\d+)_mp_rank_(?P<tensor>\d+)_optim_states\.pt")


@dataclass(frozen=True)
class _Span:
    """Where a rank's elements of a parameter lie in its flat vectors."""

    group: int
    start: int
    numel: int


@dataclass(frozen=True)
class _Shard:
    """What one rank holds: flat vectors of every part, by group, and the span of every parameter in them."""

    flats: dict[str, list[Tensor]]
    spans: dict[str, _Span]
    updates: set[int]

    def piece(self, part: str, name: str) -> Tensor:
        span = self.spans[name]
        return self.flats[part][span.group].detach().narrow(0, span.start, span.numel)


class ZeroCheckpoint:
    """An open checkpoint; its files are mapped, not read, until their elements are asked for."""

    def __init__(self, folder: Path, state: DeepSpeedState, *, check: bool = True) -> None:
        """`check`: whether bytes are compared with their checksums, which reads all of them.

        Raises: RecipeError if a file is missing or damaged.
        """
        self.folder, self.state, self._check = folder, state, check
        self._shapes = [self._parameter_shapes(rank) for rank in range(state.tensor_parallel)]
        ranks = [(t, d) for t in range(state.tensor_parallel) for d in range(state.data_parallel)]
        files = self._optimizer_files()
        self._shards = {
            (t, d): self._shard(files[t, d], t, d) for t, d in tqdm(ranks, desc="open", unit="file", disable=None)
        }
        updates = set().union(*(shard.updates for shard in self._shards.values()))
        if len(updates) != 1:
            raise RecipeError(f"{folder}: its ranks do not agree on Adam's step ({sorted(updates)}); use another one")
        (self.updates,) = updates
        self.scales: dict[str, Tensor] = self._model_states(0).get(FP8_KEY, {})

    def slices(self, part: str, name: str) -> list[Tensor]:
        """Every TP rank's slice (fp32) of a Megatron parameter's master weights or moment.

        Raises: RecipeError if elements are missing.
        """
        return [self._slice(part, name, rank) for rank in range(self.state.tensor_parallel)]

    def _slice(self, part: str, name: str, rank: int) -> Tensor:
        shards = [self._shards[rank, data_rank] for data_rank in range(self.state.data_parallel)]
        pieces = [shard.piece(part, name) for shard in shards if name in shard.spans]
        shape = self._shapes[rank].get(name)
        if shape is None or sum(piece.numel() for piece in pieces) != shape.numel():
            raise RecipeError(f"{self.folder}: TP rank {rank} does not hold all of {name}; use another checkpoint")
        return torch.cat(pieces).reshape(shape)

    def _parameter_shapes(self, rank: int) -> dict[str, torch.Size]:
        return {name: shape for group in self._shape_groups(rank) for name, shape in group.items()}

    def _shape_groups(self, rank: int) -> list[dict[str, torch.Size]]:
        return self._model_states(rank)["param_shapes"]

    def _model_states(self, rank: int) -> dict[str, Any]:
        prefix = "zero_pp_rank_0_" if self.state.zero_stage == 3 else ""
        return load_file(self.folder / f"{prefix}mp_rank_{rank:02d}_model_states.pt")

    def _optimizer_files(self) -> dict[tuple[int, int], Path]:
        """The file of every (TP rank, data-parallel rank)."""
        files = {}
        for path in self.folder.iterdir():
            if match := _OPTIMIZER_FILE.fullmatch(path.name):
                files[int(match["tensor"]), int(match["data"])] = path
        for tensor_rank in range(self.state.tensor_parallel):
            for data_rank in range(self.state.data_parallel):
                if (tensor_rank, data_rank) not in files:
                    raise RecipeError(
                        f"{self.folder}: no file of optimizer states of TP rank {tensor_rank}, data-parallel rank "
                        f"{data_rank}; use another checkpoint"
                    )
        return files

    def _shard(self, path: Path, tensor_rank: int, data_rank: int) -> _Shard:
        if self._check:
            check_bytes(path)
        optimizer = load_file(path)["optimizer_state_dict"]
        if self.state.zero_stage == 3:
            inner, masters = optimizer["optimizer_state_dict"], optimizer["fp32_flat_groups"]
            spans = spans_of_stage_3(self._shape_groups(tensor_rank), self.state.data_parallel, data_rank)
        else:
            inner, masters = optimizer["base_optimizer_state"], optimizer["single_partition_of_fp32_groups"]
            spans = {
                name: _Span(group, fragment.start, fragment.numel)
                for group, fragments in enumerate(optimizer["param_slice_mappings"])
                for name, fragment in fragments.items()
            }
        # Adam makes its state at its first update: where all were skipped so far, there is none yet.
        unmade = [{"step": 0, **dict.fromkeys(MOMENTS, torch.zeros_like(master))} for master in masters]
        states = [inner["state"].get(group, unmade[group]) for group in range(len(masters))]
        moments = {key: [state[key] for state in states] for key in MOMENTS}
        return _Shard({WEIGHTS: masters, **moments}, spans, {int(state["step"]) for state in states})


def spans_of_stage_3(groups: list[dict[str, torch.Size]], ranks: int, rank: int) -> dict[str, _Span]:
    """Where ZeRO 3 keeps a rank's elements of every parameter: ceil(numel / ranks) each, less at the end."""
    return dict(_spans_of_stage_3(groups, ranks, rank))


def _spans_of_stage_3(groups: list[dict[str, torch.Size]], ranks: int, rank: int) -> Iterator[tuple[str, _Span]]:
    for group, shapes in enumerate(groups):
        start = 0
        for name, shape in shapes.items():
            share = ceil(shape.numel() / ranks)
            yield name, _Span(group, start, max(0, min(share, shape.numel() - rank * share)))
            start += share


def check_bytes(path: Path) -> None:
    """Compares a file's bytes with the checksums that torch.save has written.

    Raises: RecipeError if one differs or the file is cut.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise RecipeError(f"{path}: cut or damaged ({error}); use another checkpoint") from error
    if damaged:
        raise RecipeError(f"{path}: damaged: the bytes of {damaged} are not those written; use another checkpoint")


def load_file(path: Path, *, mapped: bool = True) -> dict[str, Any]:
    """What torch.save has written. Only the types that DeepSpeed puts there: no code of a file is run.

    `mapped`: tensors are read from the file when they are used, else now.

    Raises: RecipeError if it is missing, damaged, or holds anything else.
    """
    os.environ.setdefault("DS_ACCELERATOR", accelerator_name())  # or DeepSpeed warns that it found no GPU
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    if not path.is_file():
        raise RecipeError(f"{path}: no such file; use another checkpoint")
    try:
        # Python 3.11.0 to 3.11.3 pickles a member of an Enum as getattr(class, name).
        member = [(_member, name) for name in ("getattr", "builtins.getattr", "__builtin__.getattr")]
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address, *member]):
            return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"{path}: not a readable file of DeepSpeed ({reason}); use another checkpoint") from error


def _member(kind: type[Enum], name: str) -> Any:
    """What stands for getattr in a file: a member of DeepSpeed's Enum and nothing else.

    Raises: UnpicklingError.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    if kind is not ZeroStageEnum or name not in ZeroStageEnum.__members__:
        raise UnpicklingError(f"getattr({kind!r}, {name!r}) is not DeepSpeed's")
    return ZeroStageEnum[name]
