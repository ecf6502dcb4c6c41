"""Data preparation measured beside Megatron-LM's and datatrove's way. See benchmarks/README.md."""
