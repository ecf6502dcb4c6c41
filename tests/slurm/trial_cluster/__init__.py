"""A real SLURM of several nodes on this machine, for tests: see cluster.sh beside this file."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("cluster.sh")
SECONDS = 600


@dataclass(frozen=True)
class TrialCluster:
    """A running cluster. Its nodes are node1, node2, ...; partitions main, cpu (a day at most), low and high."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """In which SLURM's commands speak with this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def command(self, *words: str) -> str:
        """What a SLURM command prints; it must succeed."""
        options = {"capture_output": True, "text": True, "timeout": SECONDS, "env": self.environment}
        result = subprocess.run(words, check=False, **options)
        assert result.returncode == 0, f"{words}: {result.stderr}"
        return result.stdout

    def kill_node(self, name: str) -> None:
        """As if the power failed: every process of the node is gone at once."""
        self._script("kill-node", name)

    def start_node(self, name: str) -> None:
        self._script("start-node", name)
        self.wait(
            lambda: name in self.command("sinfo", "-h", "-N", "-t", "idle,mix,alloc", "-o", "%N"), "the node is up"
        )

    def cancel_all(self) -> None:
        """Leaves the next test an empty cluster, with all its nodes."""
        self.command("scancel", "--full", "--user", "root")
        for line in (self.folder / "run" / "nodes").read_text().splitlines():
            self._script("start-node", line.split()[0])
        self.wait(lambda: not self.command("squeue", "-h"), "no job is left")
        self.wait(
            lambda: len(self.command("sinfo", "-h", "-p", "main", "-N", "-t", "idle", "-o", "%N").split()) == 3, "idle"
        )

    def wait(self, is_so: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s; logs: {self.folder}/log"
            time.sleep(0.3)

    def _script(self, *words: str) -> None:
        command, *rest = words
        subprocess.run([SCRIPT, command, self.folder, *rest], check=True, capture_output=True, timeout=SECONDS)


def reason_against() -> str | None:
    """Why no trial cluster can run here; None where one can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name, path=path) is None]
    if missing:
        return f"no {missing[0]} (Debian: apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "only root can make nodes with a network of their own"


def start(folder: Path | None = None) -> TrialCluster:
    """Three nodes of four CPUs, each with its own network, host name and address.

    Raises: RuntimeError if it does not come up.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="drope-trial-", dir="/tmp"))  # short: a socket lies below it
    words = [SCRIPT, "start", folder, "-n", "3", "-c", "4", "-g", "0", "-m", "netns", "-t", "60"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"the trial cluster did not start: {result.stdout}{result.stderr}")
    return TrialCluster(folder)


def stop(cluster: TrialCluster) -> None:
    """Ends all its processes and removes its folder."""
    subprocess.run([SCRIPT, "stop", cluster.folder], check=True, capture_output=True, timeout=SECONDS)
    shutil.rmtree(cluster.folder)
