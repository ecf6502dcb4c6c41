"""Tuning the softmax scale."""
