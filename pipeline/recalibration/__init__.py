"""Training without positional embeddings at the original context length, on Megatron-core and DeepSpeed."""
