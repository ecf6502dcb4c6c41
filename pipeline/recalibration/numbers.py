"""The numbers of a step beside what a validation finds: speed, use of the machines, and who holds up the others."""

import socket

import torch

from model_surgery.shape import ModelShape
from pipeline.recalibration.exchange import Reports
from pipeline.recalibration.job import Job
from pipeline.recalibration.metrics import Metrics, Value
from pipeline.recalibration.mfu import mfu, peak_flops
from pipeline.recalibration.stragglers import HostTimes, spread
from pipeline.recalibration.usage import described, device_name

_STEPS = 100
"""Over how many steps the times of hosts are averaged."""
_SLOW = 1.2
"""A host whose own time is this many times the median holds up the others."""


class StepNumbers:
    """What is said of every step; all ranks make one."""

    def __init__(self, job: Job, shape: ModelShape, row_length: int, device: torch.device) -> None:
        mine = (socket.gethostname(), device_name(device))
        machines: list[tuple[str, str]] = [mine] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(machines, mine)
        self.machines = described(machines)
        """How many of which device every host has."""
        self._shape, self._row_length, self._tokens = shape, row_length, job.config.batch * row_length
        self._hosts = [host for host, _ in machines]
        self._times = HostTimes(self._hosts, _STEPS)
        named = peak_flops(mine[1])
        self._peak = named if job.config.peak_tflops is None else job.config.peak_tflops * 1e12

    def measured(self, reports: Reports, seconds: float) -> dict[str, Value]:
        """Numbers that clocks and machines decide (`metrics.MEASURED`), of a step that took so long."""
        own, devices = [report.own_seconds for report in reports.ranks], len(reports.ranks)
        self._times.add(own)
        slowest = spread(own, self._hosts)
        numbers: dict[str, Value] = {
            "step_seconds": seconds,
            "tokens_per_second": self._tokens / seconds,
            "tokens_per_second_per_device": self._tokens / seconds / devices,
            "own_seconds_median": slowest.seconds_median,
            "own_seconds_max": slowest.seconds_max,
            "slowest_rank": slowest.slowest_rank,
            "slowest_host": slowest.slowest_host,
            "data_wait_seconds": self._most(reports, "data_wait_seconds"),
            "memory_bytes": self._most(reports, "memory_bytes"),
        }
        if self._peak is not None:
            numbers["mfu"] = mfu(self._shape, self._tokens, self._row_length, seconds, devices, self._peak)
        return numbers

    def name_the_slowest(self, step: int, metrics: Metrics) -> None:
        """Every so many steps says which host holds up the others, if one does."""
        if step % _STEPS:
            return
        slowest = self._times.slowest()
        if slowest.ratio >= _SLOW:
            metrics.event("slow_host", step, host=slowest.host, ratio=slowest.ratio, seconds=slowest.seconds)
            metrics.say(slowest.line)

    @staticmethod
    def _most(reports: Reports, name: str) -> float:
        return max(getattr(report, name) for report in reports.ranks)
