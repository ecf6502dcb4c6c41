"""The one collective of every step beside the engine's own: what each rank has to tell the others."""

from dataclasses import astuple, dataclass

import torch
from megatron.core import parallel_state

from pipeline.recalibration.checkpoints.writer import FAILED, WRITTEN


@dataclass
class Report:
    """One rank at one step. Numbers alone: they travel as one tensor."""

    loss: float = 0.0
    """Its share of the global batch's loss: the mean over data-parallel ranks is that loss, nats per token."""
    stop: float = 0.0
    """1 if a signal asked this rank to stop."""
    due: float = 0.0
    """1 if this rank's clock says that it is time for a checkpoint."""
    save_status: float = WRITTEN
    """How far its part of the checkpoint being written is (see `checkpoints.writer`)."""
    own_seconds: float = 0.0
    """Time that it needed for work that waits for no other host (see `stragglers.OwnTime`)."""
    data_wait_seconds: float = 0.0
    memory_bytes: float = 0.0


@dataclass(frozen=True)
class Reports:
    """All ranks' reports of a step, the same on every rank."""

    ranks: tuple[Report, ...]
    tensor_parallel: int

    @property
    def loss(self) -> float:
        """Loss of the global batch; TP ranks of a data-parallel rank hold the same share."""
        shares = [report.loss for report in self.ranks[:: self.tensor_parallel]]
        return sum(shares) / len(shares)

    @property
    def stop(self) -> bool:
        return any(report.stop for report in self.ranks)

    @property
    def all_written(self) -> bool:
        """Whether every rank has written its part of the checkpoint."""
        return all(report.save_status == WRITTEN for report in self.ranks)

    @property
    def any_failed(self) -> bool:
        return any(report.save_status == FAILED for report in self.ranks)

    @property
    def due(self) -> bool:
        """Rank 0's clock decides."""
        return bool(self.ranks[0].due)


def exchange(own: Report, device: torch.device) -> Reports:
    """Every rank's report, in the order of ranks; all ranks must call it."""
    values = torch.tensor([astuple(own)], dtype=torch.float64, device=device)
    gathered = values.new_empty(torch.distributed.get_world_size(), values.shape[1])
    torch.distributed.all_gather_into_tensor(gathered, values)
    reports = tuple(Report(*row) for row in gathered.tolist())
    return Reports(reports, parallel_state.get_tensor_model_parallel_world_size())
