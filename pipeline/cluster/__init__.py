"""The stages of a run as jobs of a SLURM cluster: submitting them, what runs inside of them, looking after them."""
