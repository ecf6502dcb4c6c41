"""The first node of a training on several: it gathers the others, starts torchrun on all, and says what came of it."""

import hmac
import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.cluster.spread import ranks_of_nodes
from pipeline.cluster.wire import Wire, free_port, interface_of
from pipeline.errors import RecipeError, StageFailed
from pipeline.launch.devices import device_memory
from pipeline.launch.processes import Failure, Torchrun, running
from pipeline.launch.signals import wait_and_pass_on
from slurm.step import Step

log = logging.getLogger(__name__)

GATHERING_SECONDS = 60.0
_HELLO_SECONDS = 5.0
_FAILING_SECONDS = 20.0
"""How long ranks of other nodes have to fail by themselves, and say how, once one has."""
_ENDING_SECONDS = 60.0


class Head:
    """The nodes of a step as `Machines`; on the first one. A context manager that dismisses the others.

    What ends the step on every node is `verdict`: the exit code that the others get too.
    """

    def __init__(self, step: Step, *, token: str, per_node: int, versions: dict[str, str]) -> None:
        """per_node: processes on every node. token: what nodes of this run know and strangers do not."""
        self._step, self._token, self._per_node, self._versions = step, token, per_node, versions
        self._wires: dict[int, Wire] = {}
        self._sessions = 0
        self.lost: list[str] = []
        """Names of nodes that went away."""
        self.verdict = 1

    @property
    def slots(self) -> int:
        return self._per_node * len(self._step.nodes)

    @property
    def memory_bytes(self) -> int:
        """Of one slot of this node; all nodes are taken to be alike."""
        import torch

        return device_memory() if torch.cuda.device_count() else device_memory() // self._per_node

    def __enter__(self) -> "Head":
        try:
            self._gather()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *rest: object) -> None:
        for wire in self._wires.values():
            try:
                wire.send("bye", code=self.verdict)
            except ConnectionError as error:
                log.debug("a node was gone before it was dismissed: %s", error)
            wire.close()

    def torchrun(self, module: str, arguments: Sequence[str], *, processes: int, log: Path) -> bool:
        """As `Machines.torchrun`. Raises: StageFailed; if nodes went away, they are in `lost` then."""
        counts = ranks_of_nodes(processes, len(self._step.nodes), self._per_node)
        used = [rank for rank in range(1, len(counts)) if counts[rank]]
        self._sessions += 1
        address = self._wires[used[0]].own_address if used else "127.0.0.1"
        where = ["--master-addr", address, "--master-port", str(free_port(address)), "--nnodes", str(len(used) + 1)]
        for rank in used:
            told = {"where": [*where, "--node-rank", str(rank)], "module": module, "arguments": [*arguments]}
            self._tell(rank, "start", number=self._sessions, processes=counts[rank], **told)
        session = _Session(self, used)
        with (
            log.open("ab") as output,
            running(
                [*where, "--node-rank", "0"],
                module,
                arguments,
                processes=counts[0],
                output=output,
                environment=network_environment(address) if used else {},
            ) as own,
        ):
            asked = wait_and_pass_on(own.process, lambda: session.watch(own))
            session.finish(own)
        if self.lost:
            raise StageFailed(f"{' and '.join(self.lost)} went away while the training ran on {len(used) + 1} nodes")
        if failure := session.first_failure():
            raise StageFailed(failure.line)
        return asked

    def _tell(self, rank: int, kind: str, **facts: Any) -> None:
        try:
            self._wires[rank].send(kind, **facts)
        except ConnectionError:
            self.lose(rank)

    def lose(self, rank: int) -> None:
        """Notes that a node has gone away."""
        if (name := self._step.nodes[rank]) not in self.lost:
            log.error("%s went away", name)
            self.lost.append(name)

    def _gather(self) -> None:
        """Raises: StageFailed naming nodes that do not come, RecipeError naming one with other versions."""
        if len(self._step.nodes) == 1:
            return
        with listen(self._step.ports) as listener:
            others, port = ", ".join(self._step.nodes[1:]), listener.getsockname()[1]
            log.info("%s waits for %s on port %d", self._step.head, others, port)
            end = time.monotonic() + GATHERING_SECONDS
            hellos: dict[int, dict[str, Any]] = {}
            while len(hellos) < len(self._step.nodes) - 1 and (left := end - time.monotonic()) > 0:
                self._greet(listener, left, hellos)
        absent = [name for rank, name in enumerate(self._step.nodes) if rank and rank not in hellos]
        if absent:
            raise StageFailed(
                f"{', '.join(absent)} did not reach {self._step.head} within {GATHERING_SECONDS:.0f} s; what they said "
                "of it stands above; without them: exclude in the cluster profile"
            )
        problem = first_difference({self._step.nodes[rank]: hellos[rank]["versions"] for rank in sorted(hellos)},
                                   self._step.head, self._versions)  # fmt: skip
        if problem:
            raise RecipeError(problem)
        for wire in self._wires.values():
            wire.send("welcome", interface=interface_of(wire.own_address))

    def _greet(self, listener: socket.socket, seconds: float, hellos: dict[int, dict[str, Any]]) -> None:
        """Takes one connection, if it is of a node of this job."""
        listener.settimeout(seconds)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        wire = Wire(connection)
        try:
            hello = wire.receive(_HELLO_SECONDS) or {}
            is_known = hmac.compare_digest(str(hello.get("token", "")).encode(), self._token.encode())
            if not is_known or hello["job"] != self._step.own_id:
                wire.close()
                return
            wire.send("heard")
        except (ConnectionError, KeyError) as error:
            log.debug("a connection that is not of this job: %s", error)
            wire.close()
            return
        self._wires[hello["rank"]], hellos[hello["rank"]] = wire, hello


class _Session:
    """One start of torchrun on all nodes, as the first one sees it."""

    def __init__(self, head: Head, used: list[int]) -> None:
        self._head, self._running = head, set(used)
        self._failures: list[Failure] = []
        self._since: float | None = None

    def watch(self, own: Torchrun) -> None:
        """Hears what other nodes say; ends the ranks here once they have waited long enough for a failed node."""
        self._hear()
        if self._since is not None and time.monotonic() - self._since > _FAILING_SECONDS:
            own.process.kill()

    def finish(self, own: Torchrun) -> None:
        """After the ranks here have ended: those of all other nodes do too, or are made to."""
        if failure := own.failure():
            self._fail(failure)
        limit = _FAILING_SECONDS if self._since is not None else _ENDING_SECONDS
        self._hear_for(limit)
        for rank in self._running:
            self._head._tell(rank, "end")
        self._hear_for(_FAILING_SECONDS)
        for rank in self._running:
            self._head.lose(rank)

    def first_failure(self) -> Failure | None:
        """By cause and then by time."""
        return min(self._failures, key=lambda failure: (failure.of_others, failure.time), default=None)

    def _hear_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._running and time.monotonic() < end:
            self._hear()
            time.sleep(0.1)

    def _hear(self) -> None:
        for rank in sorted(self._running):
            try:
                message = self._head._wires[rank].receive(0)
            except ConnectionError:
                self._head.lose(rank)
                self._running.discard(rank)
                self._since = self._since or time.monotonic()
                continue
            if message and message["kind"] == "ended":
                self._running.discard(rank)
                if message["failure"]:
                    self._fail(Failure(**message["failure"]))

    def _fail(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._since = self._since or time.monotonic()


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


def network_environment(address: str) -> dict[str, str]:
    """What tells gloo the network on which the nodes reach each other; what the profile sets counts more.

    By itself gloo takes the address that the host's name stands for, which on many machines is 127.0.1.1.
    """
    name = interface_of(address)
    return {} if name is None or "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": name}


def first_difference(of_nodes: dict[str, dict[str, str]], head: str, of_head: dict[str, str]) -> str | None:
    """How a node's versions differ from the first node's, as a line; None if all are equal.

    What is unknown on either side is not compared.
    """
    for node, versions in of_nodes.items():
        for name in sorted(versions.keys() | of_head.keys()):
            there, here = versions.get(name, "unknown"), of_head.get(name, "unknown")
            if there != here and "unknown" not in (there, here):
                return (
                    f"{node} has {name} {there}, {head} has {here}: all nodes need the same; use one installation that "
                    "all see, or exclude the node in the cluster profile"
                )
    return None
