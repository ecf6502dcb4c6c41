"""A node of a training that is not the first: it starts what the first one says, and ends with it."""

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.cluster.allocation.gathering import GATHERING_SECONDS
from pipeline.cluster.allocation.wire import Wire, network_environment
from pipeline.errors import StageFailed
from pipeline.launch.processes import Torchrun, running
from pipeline.launch.signals import wait_and_pass_on
from slurm.step import Step

log = logging.getLogger(__name__)

_TRY_SECONDS = 5.0
_WELCOME_SECONDS = 2 * GATHERING_SECONDS


def follow(step: Step, *, token: str, versions: dict[str, str], log_file: Path) -> int:
    """Does what the first node says until it dismisses this one; the exit code that it gave.

    From the moment at which all nodes have met, what is printed here goes to `log_file`.

    Raises: StageFailed if the first node cannot be reached, or goes away.
    """
    with _signals_left_to_ranks():
        wire = reach(step, token=token, versions=versions)
        try:
            message = wire.receive(_WELCOME_SECONDS)
            if message is None:
                return 1
            if message["kind"] != "welcome":
                return int(message.get("code", 1))  # the first node says itself what is wrong
            _redirect_output(log_file)
            return _obey(wire)
        except ConnectionError as error:
            raise StageFailed(f"{step.node}: the first node, {step.head}, is gone: {error}") from error


def _obey(wire: Wire) -> int:
    """Starts what the first node says, until it dismisses this one; the exit code that it gave."""
    while True:
        message = wire.receive(None) or {}
        if message.get("kind") == "bye":
            return int(message["code"])
        if message.get("kind") == "start":
            _start(wire, message)


def reach(step: Step, *, token: str, versions: dict[str, str]) -> Wire:
    """A connection to the first node.

    Raises: StageFailed naming both nodes if it cannot be had in time.
    """
    end, tries, reason = time.monotonic() + GATHERING_SECONDS, 0, "no address"
    while time.monotonic() < end:
        for address in addresses_of(step):
            for port in step.ports[: 2 + tries]:  # the first is nearly always the one
                wire, reason = _try(address, port, step, token, versions)
                if wire is not None:
                    return wire
        tries += 1
        time.sleep(0.5)
    raise StageFailed(
        f"{step.node} cannot reach {step.head}, the first node of the job, within {GATHERING_SECONDS:.0f} s: {reason}"
    )


def _try(address: str, port: int, step: Step, token: str, versions: dict[str, str]) -> tuple[Wire | None, str]:
    """A connection that the first node has acknowledged, or why there is none."""
    try:
        wire = Wire(socket.create_connection((address, port), timeout=_TRY_SECONDS))
    except OSError as error:
        return None, f"{address}:{port}: {error}"
    try:
        wire.send("hello", token=token, job=step.own_id, rank=step.index, versions=versions)
        if (wire.receive(_TRY_SECONDS) or {}).get("kind") == "heard":
            return wire, ""
        reason = "something else answers there"
    except ConnectionError as error:
        reason = f"something else answers there ({error})"
    wire.close()
    return None, f"{address}:{port}: {reason}"


def addresses_of(step: Step) -> list[str]:
    """Addresses of the first node: what its name stands for here, then what SLURM says."""
    try:
        infos = socket.getaddrinfo(step.head, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        log.debug("the name %s stands for nothing here: %s", step.head, error)
        infos = []
    addresses = [str(info[4][0]) for info in infos]
    addresses += [step.launch_address] if step.launch_address else []
    return list(dict.fromkeys(addresses))


def _start(wire: Wire, message: dict[str, Any]) -> None:
    """One session of ranks on this node, and what came of it."""
    with running(
        message["where"],
        message["module"],
        message["arguments"],
        processes=message["processes"],
        output=None,
        environment=network_environment(wire.own_address),
    ) as own:
        wait_and_pass_on(own.process, lambda: _end_if_told(wire, own))
        failure = own.failure()
    wire.send("ended", number=message["number"], failure=asdict(failure) if failure else None)


def _end_if_told(wire: Wire, own: Torchrun) -> None:
    """Raises: ConnectionError if the first node is gone; the ranks end with the block that they run in."""
    if (message := wire.receive(0)) and message["kind"] == "end":
        own.process.kill()


@contextmanager
def _signals_left_to_ranks() -> Iterator[None]:
    """SLURM sends its signals to all processes of a job: ranks act on them, and the first node says what follows."""
    numbers = (signal.SIGUSR1, signal.SIGTERM)
    before = {number: signal.signal(number, _ignore) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _ignore(number: int, frame: object) -> None:
    log.info("%s: the ranks end after their step", signal.Signals(number).name)


def _redirect_output(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
