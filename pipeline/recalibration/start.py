"""Where a training's processes begin: the checkpoint, found intact by all ranks, and the engine made of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import torch
from megatron.core import parallel_state

from model_surgery.layout import Layout, read_rank
from pipeline.errors import RecipeError
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.checkpoints.fp8 import FP8_KEY, set_scales
from pipeline.recalibration.checkpoints.intact import damage
from pipeline.recalibration.checkpoints.restore import restore
from pipeline.recalibration.checkpoints.sources import LayoutWeights, Weights, open_source, slices
from pipeline.recalibration.checkpoints.state import WEIGHTS, DeepSpeedState, State, read_state, readable_state
from pipeline.recalibration.engine import build_engine
from pipeline.recalibration.guard.rollback import Rollback
from pipeline.recalibration.history import adopt_history, forget_history
from pipeline.recalibration.layer_choice import LayerChoice
from pipeline.recalibration.phases import Phase


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from; None for the layout that surgery made."""

    checkpoint: Path | None = None
    state: State | None = None
    set_aside: tuple[str, ...] = ()
    """What was wrong with newer ones, a line each."""

    @property
    def step(self) -> int:
        return self.state.step if self.state else 0


def find_start(spec: TrainingSpec, rollbacks: Sequence[Rollback]) -> Start:
    """The newest checkpoint whose bytes are as written; damaged ones are renamed. All ranks must call it.

    Rank 0 also removes what killed saves left and what a return to an older checkpoint has passed over, and gives the
    training the metrics of a checkpoint that is not its own.

    Raises: RecipeError if there are checkpoints and none is intact.
    """
    is_first = torch.distributed.get_rank() == 0
    checkpoints = _on_rank_0(lambda: _tidy(spec.checkpoints, rollbacks))
    set_aside: list[str] = []
    for checkpoint in checkpoints or ([spec.config.branch_from] if spec.config.branch_from else []):
        if (problem := _damage_found_by_any(checkpoint)) is None:
            start = Start(checkpoint, read_state(checkpoint), tuple(set_aside))
            if is_first and is_foreign(start, spec):
                adopt_history(checkpoint, spec.out_dir)
            torch.distributed.barrier()
            return start
        set_aside.append(f"checkpoint {checkpoint.name} is damaged: {problem}")
        if is_first and checkpoint.parent == spec.checkpoints:
            set_aside[-1] += f"; set aside as {folders.set_aside(checkpoint).name}"
    if set_aside:
        raise RecipeError(f"{spec.checkpoints}: no intact checkpoint: {set_aside[0]}; remove them all to begin anew")
    if is_first:
        forget_history(spec.out_dir)
    return Start()


def is_foreign(start: Start, spec: TrainingSpec) -> bool:
    """Whether another training made the checkpoint: a branch, or a portable one put among this training's own."""
    return start.checkpoint is not None and (
        start.checkpoint.parent != spec.checkpoints or not isinstance(start.state, DeepSpeedState)
    )


def open_engine(
    spec: TrainingSpec, layout: Layout, phase: Phase, start: Start, choice: LayerChoice
) -> deepspeed.DeepSpeedEngine:
    """The engine with the weights, and the optimizer's state, that the training begins with on this rank.

    The same ranks at the same ZeRO stage load their own files, which is exact; others put every tensor together from
    all files and take their part of it.
    """
    config, rank = spec.config, parallel_state.get_tensor_model_parallel_rank()
    trained = layout.model_copy(update={"shape": phase.shape})
    own_files = start.checkpoint is not None and fits(start.state, spec, phase) and not is_foreign(start, spec)
    source = None if start.checkpoint is None or own_files else open_source(start.checkpoint, check=False)
    if source is None and layout.tensor_parallel == spec.tensor_parallel and layout.shape == phase.shape:
        weights = read_rank(spec.layout, layout, rank)
    else:
        whole: Weights = LayoutWeights(spec.layout) if source is None else source
        degree = spec.tensor_parallel
        weights = dict(slices(whole, WEIGHTS, phase.shape, tensor_parallel=degree, rank=rank))
    engine = build_engine(config, trained, weights, phase.position_embedding, choice)
    if source is not None:
        restore(engine, source, phase.shape)
        set_scales(engine.module, source.scales)
    elif start.checkpoint is not None:  # its files are those of these ranks
        _, others = engine.load_checkpoint(str(spec.checkpoints), tag=start.checkpoint.name)
        set_scales(engine.module, others.get(FP8_KEY, {}))
    return engine


def fits(state: State | None, spec: TrainingSpec, phase: Phase) -> bool:
    """Whether ranks of this training can load a checkpoint's files as they are."""
    config = spec.config
    return (
        isinstance(state, DeepSpeedState)
        and (state.tensor_parallel, state.data_parallel) == (spec.tensor_parallel, config.data_parallel)
        and (state.zero_stage, state.precision) == (config.zero_stage, config.dtype)
        and state.shape == phase.shape
    )


def _tidy(folder: Path, rollbacks: Sequence[Rollback]) -> list[Path]:
    """The checkpoints that may be gone on from, newest first, after those that may not are removed."""
    folders.remove_incomplete(folder)
    for checkpoint in folders.complete(folder):
        if is_passed_over(readable_state(checkpoint), rollbacks):
            folders.remove(checkpoint)
    return folders.complete(folder)[::-1]


def is_passed_over(state: State | None, rollbacks: Sequence[Rollback]) -> bool:
    """Whether the run has gone back to an older step since this state was saved."""
    return state is not None and any(state.step > rollback.to_step for rollback in rollbacks[state.rollbacks :])


def _damage_found_by_any(checkpoint: Path) -> str | None:
    """All ranks look at their share of the files."""
    ranks = torch.distributed.get_world_size()
    problems: list[str | None] = [None] * ranks
    torch.distributed.all_gather_object(problems, damage(checkpoint, share=torch.distributed.get_rank(), of=ranks))
    return next((problem for problem in problems if problem), None)


def _on_rank_0(function: Callable[[], list[Path]]) -> list[Path]:
    """What the function returns on rank 0, on every rank."""
    results = [function() if torch.distributed.get_rank() == 0 else []]
    torch.distributed.broadcast_object_list(results)
    return results[0]
