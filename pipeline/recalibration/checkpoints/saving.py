"""Saving a training: all ranks write their files beside the others, and only a whole checkpoint gets its name."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import torch

from foundation.files import write_json
from pipeline.errors import StageFailed
from pipeline.recalibration.checkpoints import folders
from pipeline.recalibration.checkpoints.fp8 import FP8_KEY, scales_of
from pipeline.recalibration.checkpoints.state import STATE_FILE, DeepSpeedState, StoredFile
from pipeline.recalibration.checkpoints.writer import FileWriter
from pipeline.recipe.recalibration import RecalibrationConfig

PENDING, WRITTEN, FAILED = 0.0, 1.0, 2.0
"""What a rank says of its part of the checkpoint that is being written."""


@dataclass(frozen=True)
class Published:
    """A checkpoint that has become visible."""

    step: int
    bytes: int
    seconds: float
    """From its begin, most of them beside the training."""


class Saver:
    """The checkpoints that a training makes. All ranks make every call at the same step."""

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        folder: Path,
        config: RecalibrationConfig,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`progress` is told, from a thread, while files are written."""
        self._engine, self._folder, self._config = engine, folder, config
        self._writer = FileWriter(asynchronous=config.checkpoint_async, progress=progress)
        engine.checkpoint_engine = self._writer
        self._state: DeepSpeedState | None = None
        self._began = 0.0

    @property
    def status(self) -> float:
        """How far this rank is with what is being written: PENDING, WRITTEN (also if nothing is) or FAILED."""
        if self._writer.failed:
            return FAILED
        return WRITTEN if self._writer.is_done else PENDING

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint has been begun and not published."""
        return self._state is not None

    def begin(self, state: DeepSpeedState) -> None:
        """Takes the state of this step; nothing on the disk looks like a checkpoint before `publish`."""
        self._began = time.perf_counter()
        scales = scales_of(self._engine.module)
        self._engine.save_checkpoint(
            str(self._folder),
            tag=folders.partial_name(state.step),
            client_state={FP8_KEY: scales} if scales else {},
            save_latest=False,
        )
        self._state = state

    def abandon(self) -> None:
        """For all ranks, when one has FAILED to write its files.

        Raises: what writing them raised on that rank, StageFailed on the others.
        """
        self._writer.finish()
        raise StageFailed("another rank could not write its part of a checkpoint; its message stands above")

    def publish(self, best: int | None) -> Published | None:
        """Waits for the files of all ranks and makes them a checkpoint; `best`: the step of the lowest validation.

        Returns what is worth noting of it, on rank 0; None elsewhere, and where nothing has been begun.
        """
        if (state := self._state) is None:
            return None
        mine = self._writer.finish()
        is_first = torch.distributed.get_rank() == 0
        gathered: list[dict[str, StoredFile]] | None = [{}] * torch.distributed.get_world_size() if is_first else None
        torch.distributed.gather_object(mine, gathered)
        self._state = None
        published = None
        if gathered is not None:
            files = {name: file for rank in gathered for name, file in rank.items()}
            published = self._publish(state.model_copy(update={"files": files}), best)
        torch.distributed.barrier()
        return published

    def _publish(self, state: DeepSpeedState, best: int | None) -> Published:
        write_json(self._folder / folders.partial_name(state.step) / STATE_FILE, state.model_dump(mode="json"))
        folders.publish(self._folder, state.step)
        config, found = self._config, {folders.step_of(path): path for path in folders.complete(self._folder)}
        wanted = folders.kept(found, newest=config.keep_checkpoints, every=config.keep_every, best=best)
        for step in found.keys() - wanted:
            folders.remove(found[step])
        seconds = time.perf_counter() - self._began
        return Published(state.step, sum(file.bytes for file in state.files.values()), seconds)
