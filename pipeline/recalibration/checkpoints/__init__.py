"""Training checkpoints: complete or invisible, written while training goes on, read by any number of ranks."""
