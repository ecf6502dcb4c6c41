"""`drope submit`: from a recipe to jobs that SLURM has accepted."""
