"""The training stage measured beside transformers' Trainer with DeepSpeed. See benchmarks/README.md."""
