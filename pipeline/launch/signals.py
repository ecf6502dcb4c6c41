"""Signals that ask a run to end: SIGUSR1 (its time is nearly over), SIGTERM (it is preempted), SIGINT (Ctrl-C)."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from pipeline.errors import OutOfTime, Stopped

_SECONDS_BETWEEN_REQUESTS = 1.0
_passed_on: list[int] = []
"""Signals that went to ranks, which may have come to their end all the same; signals are of the whole process."""


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGUSR1 and SIGTERM end what runs here by Stopped: stages that are cut off begin anew or go on."""

    def stop(number: int) -> None:
        kind = OutOfTime if number == signal.SIGUSR1 else Stopped
        raise kind(f"stopped by {signal.Signals(number).name}; the same command goes on")

    _passed_on.clear()
    with _handled((signal.SIGUSR1, signal.SIGTERM), stop):
        yield


def stop_if_asked(following: str) -> None:
    """Raises: Stopped if a signal asked for an end while ranks came to theirs, so that `following` does not begin."""
    if _passed_on:
        name = signal.Signals(_passed_on[0]).name
        raise Stopped(
            f"stopped by {name} before {following}; what comes before it is complete; the same command goes on"
        )


def wait_and_pass_on(process: subprocess.Popen[bytes], meanwhile: Callable[[], None] = lambda: None) -> bool:
    """Waits for a torchrun; signals that ask for an end are passed to its ranks as SIGUSR1. Returns whether one came.

    The ranks end by themselves, after a checkpoint; a second Ctrl-C does not wait for that. `meanwhile` is called about
    every second.
    """
    requests: list[int] = []

    def request_stop(number: int) -> None:
        if number == signal.SIGINT:
            if number in requests:
                raise KeyboardInterrupt
            print("stopping after this step, with a checkpoint; Ctrl-C again: at once, without", file=sys.stderr)
        requests.append(number)
        _passed_on.append(number)
        tell_children(process.pid, signal.SIGUSR1)

    with _handled((signal.SIGUSR1, signal.SIGTERM, signal.SIGINT), request_stop):
        while True:
            try:
                process.wait(timeout=_SECONDS_BETWEEN_REQUESTS)
                return bool(requests)
            except subprocess.TimeoutExpired:
                meanwhile()
                if requests:  # again: ranks that were just starting did not listen yet
                    tell_children(process.pid, signal.SIGUSR1)


def tell_children(parent: int, number: signal.Signals) -> None:
    """Sends a signal to the child processes of a process."""
    try:
        children = psutil.Process(parent).children()
    except psutil.NoSuchProcess:
        return
    for child in children:
        if child.is_running():
            child.send_signal(number)


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handle: Callable[[int], None]) -> Iterator[None]:
    """Within the block `handle` is called for these signals; Python takes signals in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        handle(number)

    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
