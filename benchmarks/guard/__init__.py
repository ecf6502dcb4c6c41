"""QK-norm on and off at a learning rate that is too high, with the guard and without. See benchmarks/README.md."""
