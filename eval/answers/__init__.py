"""Generating answers and keeping them."""
