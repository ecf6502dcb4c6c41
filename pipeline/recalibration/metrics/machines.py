"""The machines of a training in numbers: how fast a step was, what it took of them, and who holds up the others."""

import platform
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from model_surgery.shape import ModelShape
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.callback import Callback
from pipeline.recalibration.exchange import Reports
from pipeline.recalibration.metrics.files import Value
from pipeline.recalibration.metrics.recorder import MetricsRecorder
from pipeline.recalibration.mfu import mfu, peak_flops
from pipeline.recalibration.step import Step
from pipeline.recalibration.stragglers import HostTimes, OwnTime, spread

_STEPS = 100
"""Over how many steps the times of hosts are averaged."""
_SLOW = 1.2
"""A host whose own time is this many times the median holds up the others."""
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class MachineMetrics(Callback):
    """Speed, memory and stragglers of every step; all ranks make one."""

    def __init__(
        self,
        spec: TrainingSpec,
        shape: ModelShape,
        row_length: int,
        device: torch.device,
        recorder: MetricsRecorder | None,
    ) -> None:
        own = (socket.gethostname(), device_name(device))
        machines: list[tuple[str, str]] = [own] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(machines, own)
        self.machines = described(machines)
        """How many of which device every host has."""
        self._device, self._recorder, self._own = device, recorder, OwnTime(device)
        self._shape, self._row_length, self._tokens = shape, row_length, spec.config.batch * row_length
        self._hosts = [host for host, _ in machines]
        self._times = HostTimes(self._hosts, _STEPS)
        named = peak_flops(own[1])
        self._peak = named if spec.config.peak_tflops is None else spec.config.peak_tflops * 1e12

    def phase_begin(self, step: int, phase: str) -> None:
        if _is_own_work(phase):
            self._own.begin()

    def phase_end(self, step: int, phase: str) -> None:
        if _is_own_work(phase):
            self._own.end()

    def before_exchange(self, step: Step) -> None:
        step.report.own_seconds = self._own.take()
        step.report.memory_bytes = memory_bytes(self._device)

    def after_update(self, step: Step) -> None:
        step.machines = self.measured(step.reports, time.perf_counter() - step.began)

    def line_written(self, step: Step) -> None:
        if self._recorder:
            self.name_the_slowest(step.number, self._recorder)

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

    def name_the_slowest(self, step: int, recorder: MetricsRecorder) -> None:
        """Every so many steps says which host holds up the others, if one does."""
        if step % _STEPS:
            return
        slowest = self._times.slowest()
        if slowest.ratio >= _SLOW:
            recorder.event("slow_host", step, host=slowest.host, ratio=slowest.ratio, seconds=slowest.seconds)
            recorder.say(slowest.line)

    @staticmethod
    def _most(reports: Reports, name: str) -> float:
        return max(getattr(report, name) for report in reports.ranks)


def _is_own_work(phase: str) -> bool:
    """Whether a phase waits for no other host (see `stragglers.OwnTime`)."""
    return phase == "data" or phase.startswith("forward")


def memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held so far: of its GPU as torch allocated it, else resident memory.

    Raises: RuntimeError if the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (peak := _PEAK.search(Path("/proc/self/status").read_text(encoding="ascii"))) is None:
        raise RuntimeError("/proc/self/status does not say VmHWM, the peak of resident memory")
    return int(peak[1]) * 1024


def device_name(device: torch.device) -> str:
    """The GPU's name, else the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def described(machines: Iterable[tuple[str, str]]) -> list[str]:
    """(host, device) of every rank as one line per host and device: 'node7: 8 x NVIDIA H100'."""
    return [f"{host}: {count} x {name}" for (host, name), count in Counter(machines).items()]
