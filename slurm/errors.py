"""What can be wrong between this machine and a SLURM cluster."""


class SlurmError(ValueError):
    """A cluster profile, or a job that SLURM refuses: one line with the way out."""


class SlurmUnreachable(RuntimeError):
    """SLURM's controller does not answer; the same command may work later."""
