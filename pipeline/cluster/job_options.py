"""The options of `drope job`, which a submission writes into a script and the job reads on every node."""

from dataclasses import dataclass

from pipeline.cluster.stage_jobs import MERGE, Does


@dataclass(frozen=True)
class JobOptions:
    """What a job of a run is there for."""

    part: str
    """Name of the stage job: STAGE, or STAGE-merge."""
    of: int = 1
    """Number of tasks; 1 for a job that is no array."""
    offset: int = 0
    """Number of a task less its index in SLURM's array."""
    per_node: int = 1
    """Processes of a training on every node."""
    nodes_min: int = 1
    """Fewest nodes that it runs on."""
    exclude: str = ""
    """Nodes that the profile never uses, as SLURM writes them."""
    barren: int = 3
    """Allocations in a row that may bring nothing."""

    @property
    def stage(self) -> str:
        return self.part.removesuffix(MERGE)

    @property
    def does(self) -> Does:
        if self.part.endswith(MERGE):
            return "merge"
        return "tasks" if self.of > 1 else "all"

    def as_words(self) -> list[str]:
        """On the command line; what a job has by default is left out."""
        words = ["--part", self.part]
        words += ["--of", str(self.of)] if self.of > 1 else []
        words += ["--offset", str(self.offset)] if self.offset else []
        words += ["--per-node", str(self.per_node)] if self.per_node > 1 else []
        words += ["--nodes-min", str(self.nodes_min)] if self.nodes_min > 1 else []
        words += ["--exclude", self.exclude] if self.exclude else []
        return [*words, "--barren", str(self.barren)]
