"""Hugging Face checkpoints <-> tensor-parallel layouts without positional embeddings."""
