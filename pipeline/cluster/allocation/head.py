"""The first node of a training on several: it starts torchrun on all of them, and says what came of it."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.cluster.allocation.gathering import Followers, gather
from pipeline.cluster.allocation.session import Session
from pipeline.cluster.allocation.wire import free_port, network_environment
from pipeline.cluster.spread import ranks_of_nodes
from pipeline.errors import StageFailed
from pipeline.launch.devices import device_memory
from pipeline.launch.processes import running
from pipeline.launch.signals import wait_and_pass_on
from slurm.step import Step


class Head:
    """The nodes of a step as `Machines`; on the first one. A context manager that dismisses the others.

    What ends the step on every node is `verdict`: the exit code that the others get too.
    """

    def __init__(self, step: Step, *, token: str, per_node: int, versions: dict[str, str]) -> None:
        """per_node: processes on every node. token: what nodes of this run know and strangers do not."""
        self._step, self._token, self._per_node, self._versions = step, token, per_node, versions
        self._followers = Followers(step.nodes, {})
        self._sessions = 0
        self.verdict = 1

    @property
    def slots(self) -> int:
        return self._per_node * len(self._step.nodes)

    @property
    def memory_bytes(self) -> int:
        """Of one slot of this node; all nodes are taken to be alike."""
        import torch

        return device_memory() if torch.cuda.device_count() else device_memory() // self._per_node

    @property
    def lost(self) -> list[str]:
        """Names of nodes that went away."""
        return self._followers.lost

    def __enter__(self) -> "Head":
        """Raises: StageFailed naming nodes that do not come, RecipeError naming one with other versions."""
        self._followers = gather(self._step, token=self._token, versions=self._versions)
        return self

    def __exit__(self, *error: object) -> None:
        self._followers.dismiss(self.verdict)

    def torchrun(self, module: str, arguments: Sequence[str], *, processes: int, log: Path) -> bool:
        """As `Machines.torchrun`. Raises: StageFailed; if nodes went away, they are in `lost` then."""
        counts = ranks_of_nodes(processes, len(self._step.nodes), self._per_node)
        others = [rank for rank in range(1, len(counts)) if counts[rank]]
        address = self._followers.address_for(others[0]) if others else "127.0.0.1"
        rendezvous = ["--master-addr", address, "--master-port", str(free_port(address))]
        rendezvous += ["--nnodes", str(len(others) + 1)]
        self._sessions += 1
        for rank in others:
            self._followers.tell(
                rank,
                "start",
                number=self._sessions,
                processes=counts[rank],
                where=[*rendezvous, "--node-rank", str(rank)],
                module=module,
                arguments=[*arguments],
            )
        session = Session(self._followers, others)
        with (
            log.open("ab") as output,
            running(
                [*rendezvous, "--node-rank", "0"],
                module,
                arguments,
                processes=counts[0],
                output=output,
                environment=network_environment(address) if others else {},
            ) as own,
        ):
            asked_to_end = wait_and_pass_on(own.process, lambda: session.watch(own))
            session.finish(own)
        if self.lost:
            raise StageFailed(f"{' and '.join(self.lost)} went away while the training ran on {len(others) + 1} nodes")
        if failure := session.first_failure():
            raise StageFailed(failure.line)
        return asked_to_end
