"""How the first node of a training gathers the others, and what it says to them."""

import hmac
import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.allocation.versions import first_difference
from pipeline.cluster.allocation.wire import Wire, interface_of
from pipeline.errors import RecipeError, StageFailed
from slurm.step import Step

log = logging.getLogger(__name__)

GATHERING_SECONDS = 60.0
_HELLO_SECONDS = 5.0


class Followers:
    """The nodes of a training but the first one, by their rank in the job's step."""

    def __init__(self, nodes: Sequence[str], wires: dict[int, Wire]) -> None:
        """nodes: names of all nodes, in the order of their ranks."""
        self._nodes, self._wires = nodes, wires
        self.lost: list[str] = []
        """Names of nodes that went away."""

    def address_for(self, rank: int) -> str:
        """The address under which a node reaches this one."""
        return self._wires[rank].own_address

    def tell(self, rank: int, kind: str, **facts: Any) -> None:
        """Sends a message; a node that is gone is noted as lost."""
        try:
            self._wires[rank].send(kind, **facts)
        except ConnectionError:
            self.lose(rank)

    def hear(self, rank: int) -> dict[str, Any] | None:
        """What a node has said and was not heard yet. Raises: ConnectionError if it is gone."""
        return self._wires[rank].receive(0)

    def lose(self, rank: int) -> None:
        """Notes that a node has gone away."""
        if (name := self._nodes[rank]) not in self.lost:
            log.error("%s went away", name)
            self.lost.append(name)

    def dismiss(self, code: int) -> None:
        """Ends the step on all of them, with this exit code."""
        dismiss(self._wires, code)


@dataclass(frozen=True)
class Hello:
    """What a node says of itself, over its connection."""

    wire: Wire
    rank: int
    versions: dict[str, str]


def gather(step: Step, *, token: str, versions: dict[str, str]) -> Followers:
    """Waits for all other nodes of the step. token: what nodes of this run know and strangers do not.

    Raises: StageFailed naming nodes that do not come, RecipeError naming one with other versions; those that have come
    are dismissed then.
    """
    if len(step.nodes) == 1:
        return Followers(step.nodes, {})
    hellos: dict[int, Hello] = {}
    try:
        _await_hellos(step, token, hellos)
        _refuse_absent(step, hellos)
        of_nodes = {step.nodes[rank]: hellos[rank].versions for rank in sorted(hellos)}
        if difference := first_difference(of_nodes, step.head, versions):
            raise RecipeError(difference)
        for hello in hellos.values():
            hello.wire.send("welcome", interface=interface_of(hello.wire.own_address))
    except BaseException:
        dismiss({rank: hello.wire for rank, hello in hellos.items()}, code=1)
        raise
    return Followers(step.nodes, {rank: hello.wire for rank, hello in hellos.items()})


def dismiss(wires: dict[int, Wire], code: int) -> None:
    """Tells nodes to end with this exit code."""
    for wire in wires.values():
        try:
            wire.send("bye", code=code)
        except ConnectionError as error:
            log.debug("a node was gone before it was dismissed: %s", error)
        wire.close()


def _await_hellos(step: Step, token: str, hellos: dict[int, Hello]) -> None:
    """Takes connections until all nodes have said hello, or their time is over."""
    with listen(step.ports) as listener:
        others, port = ", ".join(step.nodes[1:]), listener.getsockname()[1]
        log.info("%s waits for %s on port %d", step.head, others, port)
        end = time.monotonic() + GATHERING_SECONDS
        while len(hellos) < len(step.nodes) - 1 and (left := end - time.monotonic()) > 0:
            if hello := _greet(listener, left, step, token):
                hellos[hello.rank] = hello


def _refuse_absent(step: Step, hellos: dict[int, Hello]) -> None:
    absent = [name for rank, name in enumerate(step.nodes) if rank and rank not in hellos]
    if absent:
        raise StageFailed(
            f"{', '.join(absent)} did not reach {step.head} within {GATHERING_SECONDS:.0f} s; what they said "
            "of it stands above; without them: exclude in the cluster profile"
        )


def _greet(listener: socket.socket, seconds: float, step: Step, token: str) -> Hello | None:
    """One connection, if it comes in this time and is of a node of this job."""
    listener.settimeout(seconds)
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None
    wire = Wire(connection)
    try:
        message = wire.receive(_HELLO_SECONDS) or {}
        is_known = hmac.compare_digest(str(message.get("token", "")).encode(), token.encode())
        if is_known and message["job"] == step.own_id:
            wire.send("heard")
            return Hello(wire, message["rank"], message["versions"])
    except (ConnectionError, KeyError) as error:
        log.debug("a connection that is not of this job: %s", error)
    wire.close()
    return None


def listen(ports: Sequence[int]) -> socket.socket:
    """A socket that listens on the first of the ports that is free.

    Raises: StageFailed if none is.
    """
    for port in ports:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
            listener.listen(256)
            return listener
        except OSError as error:
            log.debug("port %d: %s", port, error)
            listener.close()
    raise StageFailed(f"{socket.gethostname()}: none of the ports {', '.join(map(str, ports))} is free")
