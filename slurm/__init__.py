"""Jobs on a SLURM cluster: resources -> script -> submitted job -> its state. Knows nothing of what the jobs do."""
