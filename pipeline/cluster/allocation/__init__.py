"""`drope job`: what runs on the nodes that SLURM has given."""
