"""What a process that srun started knows of its job: SLURM's environment variables (srun's manual page)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from slurm.errors import SlurmError

_FIRST_PORT, _PORTS, _STRIDE, _TRIED = 20_000, 12_000, 997, 16


@dataclass(frozen=True)
class Step:
    """One process of a step that has one process on every node."""

    job_id: int
    """Of the array, for a task of one."""
    task: int | None
    """Number in its array."""
    own_id: int
    """The id that SLURM has for this job or task alone."""
    restarts: int
    index: int
    """Place of this process's node in `nodes`."""
    nodes: tuple[str, ...]
    """All nodes of the step, in the order of their processes."""
    launch_address: str | None
    """Address of the node that called srun, which is the first one for a batch script."""

    @property
    def node(self) -> str:
        return self.nodes[self.index]

    @property
    def head(self) -> str:
        return self.nodes[0]

    @property
    def label(self) -> str:
        """The job as people and file names have it."""
        return str(self.job_id) if self.task is None else f"{self.job_id}_{self.task}"

    @property
    def ports(self) -> tuple[int, ...]:
        """Ports on which the first node may be met, in the order in which they are tried.

        They follow from the job, so that all nodes know them, and differ between jobs and restarts that share a node.
        They lie below the range from which Linux gives ports to connections (32768 and above).
        """
        start = self.own_id * 7919 + self.restarts * 131
        return tuple(_FIRST_PORT + (start + number * _STRIDE) % _PORTS for number in range(_TRIED))

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> "Step":
        """Raises: SlurmError where the process was not started by srun."""
        try:
            own_id = int(environment["SLURM_JOB_ID"])
            task = environment.get("SLURM_ARRAY_TASK_ID")
            return Step(
                job_id=int(environment.get("SLURM_ARRAY_JOB_ID", own_id)),
                task=None if task is None else int(task),
                own_id=own_id,
                restarts=int(environment.get("SLURM_RESTART_COUNT", 0)),
                index=int(environment["SLURM_PROCID"]),
                nodes=node_names(environment["SLURM_STEP_NODELIST"]),
                launch_address=environment.get("SLURM_LAUNCH_NODE_IPADDR"),
            )
        except (KeyError, ValueError) as error:
            raise SlurmError(f"not in a job step of SLURM: {error}; this command is what srun runs in a job") from error


def node_names(nodelist: str) -> tuple[str, ...]:
    """The nodes of `node[1-3],login1`, in SLURM's order."""
    from ClusterShell.NodeSet import NodeSet

    # Name by name: a NodeSet is sorted, and SLURM's order need not be.
    return tuple(name for part in re.split(r",(?![^\[]*\])", nodelist) for name in NodeSet(part))


def folded(nodes: tuple[str, ...]) -> str:
    """The nodes as SLURM's options take them: node[1-3]."""
    from ClusterShell.NodeSet import NodeSet

    return str(NodeSet.fromlist(nodes))
